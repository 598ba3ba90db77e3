"""``tidings token``: who may come to ``tidings serve``, and what each may do."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption, NotFound, nearest

from . import show
from ._options import Json, flag
from .serve import Config, settings_of

if TYPE_CHECKING:
    from tidings.gateway.access import Client

app = cyclopts.App(name="token", help="Tokens of clients of `tidings serve`: add, list, revoke.")

audit = logging.getLogger("tidings.audit")

Patterns = Annotated[list[str] | None, Parameter(negative=())]


@app.command
def add(
    name: Annotated[str, Parameter(help="Who gets it; for the log.")],
    /,
    *,
    publish: Annotated[Patterns, Parameter(help="Topics it may publish to: a pattern; several times.")] = None,
    subscribe: Annotated[Patterns, Parameter(help="Topics it may read.")] = None,
    group: Annotated[Patterns, Parameter(help="Groups it may join.")] = None,
    request: Annotated[Patterns, Parameter(help="Services it may ask.")] = None,
    admin: Annotated[bool, flag("The operator's page and metrics.")] = False,
    member: Annotated[bool, flag("Everything that an app of ours does on the bus, by grpc://.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a token for a client, and print it: this once, for only its hash is kept.

    What is not given may not be done. A server that runs takes it after `kill -HUP`.
    """
    from tidings.gateway.access import Client, hashed, new_token
    from tidings.gateway.rights import Rights

    rights = Rights(
        publish=tuple(publish or ()),
        subscribe=tuple(subscribe or ()),
        group=tuple(group or ()),
        request=tuple(request or ()),
        admin=admin,
        member=member,
    )
    if rights == Rights():
        mend = f"tidings token add {name} --publish 'orders.>' --subscribe 'orders.>'"
        raise InvalidOption(f"{name!r} may do nothing", why="no right was given", mend=mend)
    path, token = _path(config), new_token()

    def added(clients: Sequence[Client]) -> list[Client]:
        if any(client.name == name for client in clients):
            mend = f"tidings token revoke {name}, or another name"
            raise InvalidOption(f"{name!r} has a token already", mend=mend)
        return [*clients, Client(name=name, token=hashed(token), rights=rights)]

    _change(path, added)
    _audited("added", name, path)
    if json:
        show.document({"name": name, "token": token, "rights": rights, "file": str(path)})
    else:
        show.say(token)
        show.note(f"it is shown this once; its hash is in {path}. A server that runs: kill -HUP")


@app.default
@app.command(name="ls")
def ls(*, config: Config = None, json: Json = False) -> None:
    """List who has a token, and what each may do."""
    path = _path(config)
    from tidings.gateway.tokens import read

    clients = read(path)
    if json:
        show.document([{"name": client.name, "rights": client.rights} for client in clients])
    elif clients:
        show.table(("name", "rights"), [(client.name, _told(msgspec.to_builtins(client.rights))) for client in clients])
    else:
        show.note(f"no tokens in {path}: `tidings token add NAME` makes one")


@app.command
def revoke(
    name: Annotated[str, Parameter(help="Whose it is.")], /, *, config: Config = None, json: Json = False
) -> None:
    """Let a token be worth nothing. A server that runs hears of it by `kill -HUP`."""
    path = _path(config)

    def left(clients: Sequence[Client]) -> list[Client]:
        names = [client.name for client in clients]
        if name not in names:
            mend = nearest(name, names) or "`tidings token ls` lists who has one"
            raise NotFound(f"{name!r} has no token in {path}", mend=mend)
        return [client for client in clients if client.name != name]

    _change(path, left)
    _audited("revoked", name, path)
    if json:
        show.document({"revoked": name, "file": str(path)})
    else:
        show.say(f"revoked the token of {name}")


def _path(config: Path | None) -> Path:
    return Path(settings_of(config, {}).tokens)


def _change(path: Path, change: Any) -> None:
    from tidings.gateway.tokens import alone, read, write

    with alone(path):
        write(path, tuple(change(read(path))))


def _audited(done: str, name: str, path: Path) -> None:
    """Who did what, when: to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    audit.info("%s %s the token of %s in %s", getpass.getuser(), done, name, path)


def _told(rights: dict[str, Any]) -> str:
    """``publish orders.> · admin``."""
    return " · ".join(
        name if given is True else f"{name} {', '.join(given)}" for name, given in rights.items() if given
    )
