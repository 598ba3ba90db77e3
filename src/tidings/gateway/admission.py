"""Who may come, as the configuration and the file of tokens say; and when that changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tidings.kernel.errors import InvalidOption, TidingsError

from . import tokens
from .access import Access, Client
from .browsers import host_of
from .gateway import audit
from .listening import is_loopback, refuse_open_doors
from .rights import EVERYTHING, Rights
from .settings import Settings

log = logging.getLogger("tidings")


def admitted(settings: Settings) -> tuple[Sequence[Client], Rights | None]:
    """Who may come: those of the configuration and of the tokens' file, and what everybody may.

    Where nobody is named and nothing is said of the others, that is everything: for a bus on this machine. A file of
    tokens without any names nobody any more, and lets nobody in.

    Raises ``InvalidOption`` for a file that cannot be read, for tokens that others could read on their way, and where a
    site that is behind a proxy would be everybody's.
    """
    path = Path(settings.tokens)
    clients = (*settings.clients, *tokens.read(path))
    _refuse_in_clear(settings, clients)
    if settings.anonymous is not None or clients or path.exists():
        return clients, settings.anonymous
    if settings.tls.required:
        return clients, None
    _refuse_open_site(settings)
    return clients, EVERYTHING


def _refuse_in_clear(settings: Settings, clients: Sequence[Client]) -> None:
    secured = settings.tls.cert or settings.tls.proxy or settings.insecure
    if secured or not any(client.token for client in clients):
        return
    hosts = [settings.host, *(each.rpartition(":")[0] for each in settings.grpc if not each.startswith("unix:"))]
    if beyond := [host or "every address" for host in hosts if not is_loopback(host)]:
        why = f"{', '.join(beyond)} can be reached from other machines, and there is no TLS"
        mend = '[tls] cert = "server.pem", key = "server.key"; proxy = true if a proxy before it has TLS; or --insecure'
        raise InvalidOption("tokens could be read on their way", why=why, mend=mend)


def _refuse_open_site(settings: Settings) -> None:
    sites = [origin for origin in settings.origins if not is_loopback(host_of(origin))]
    if sites and not settings.insecure:
        what, why = "nobody has to say who it is, and everybody could do everything", f"origins has {sites[0]!r}"
        mend = "`tidings token add NAME --publish … --subscribe …`, or say what everybody may: [anonymous]"
        raise InvalidOption(what, why=f"{why}: it is no server of this machine alone", mend=mend)


def read_anew(settings: Settings, access: Access) -> None:
    """Who may come is read anew; what cannot be read changes nothing."""
    try:
        clients, anonymous = admitted(settings)
        refuse_open_doors(settings, anonymous)
        _refuse_lost(settings, access, anonymous)
    except TidingsError as error:
        log.error("access is as before: %s", error)
        return
    access.admit(clients, anonymous)
    audit.info("access was read anew: %s", named(clients, anonymous))


def _refuse_lost(settings: Settings, access: Access, anonymous: Rights | None) -> None:
    """Raises ``InvalidOption`` where the file of tokens was there, and is not."""
    of_file = any(client not in settings.clients for client in access.clients)
    opened = anonymous is not None and not access.anonymous  # as by a file without any
    if (of_file or opened) and not Path(settings.tokens).exists():
        mend = "put it back; `tidings token revoke` takes tokens back; or start anew without it"
        raise InvalidOption(f"{settings.tokens} is not there any more", mend=mend, where=settings.tokens)


def named(clients: Sequence[Client], anonymous: Rights | None) -> str:
    """Who may come, for the log."""
    others = (
        "nobody else" if anonymous is None else "everybody" if anonymous == EVERYTHING else "others with few rights"
    )
    return ", ".join([*(client.name for client in clients), others])
