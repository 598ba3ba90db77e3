"""Who may come, as the configuration and the file of tokens say; and when that changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tidings.kernel.errors import TidingsError

from . import tokens
from .access import Access, Client
from .gateway import audit
from .listening import refuse_open_doors
from .rights import EVERYTHING, Rights
from .settings import Settings

log = logging.getLogger("tidings")


def admitted(settings: Settings) -> tuple[Sequence[Client], Rights | None]:
    """Who may come: those of the configuration and of the tokens' file, and what everybody may.

    Where nobody is named and nothing is said of the others, that is everything: for a bus on this machine. A file of
    tokens without any names nobody any more, and lets nobody in.
    """
    path = Path(settings.tokens)
    clients = (*settings.clients, *tokens.read(path))
    if settings.anonymous is not None or clients or path.exists():
        return clients, settings.anonymous
    return clients, None if settings.tls.required else EVERYTHING


def read_anew(settings: Settings, access: Access) -> None:
    """Who may come is read anew; what cannot be read changes nothing."""
    try:
        clients, anonymous = admitted(settings)
        refuse_open_doors(settings, anonymous)
    except TidingsError as error:
        log.error("access is as before: %s", error)
        return
    access.admit(clients, anonymous)
    audit.info("access was read anew: %s", named(clients, anonymous))


def named(clients: Sequence[Client], anonymous: Rights | None) -> str:
    """Who may come, for the log."""
    others = (
        "nobody else" if anonymous is None else "everybody" if anonymous == EVERYTHING else "others with few rights"
    )
    return ", ".join([*(client.name for client in clients), others])
