"""Pages of other sites in a browser on this machine: they reach a loopback address as well as we do.

A page may send a POST or open a WebSocket anywhere, and its browser tells where it is from (``Origin``). Only pages of
this server, and of the sites that are allowed, may come. And where everybody may come, the server must be called by a
name of this machine: a site whose name was turned to 127.0.0.1 (DNS rebinding) calls it by its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .listening import is_loopback
from .refusals import Forbidden
from .site import problem

METHODS = ("GET", "POST", "PUT", "DELETE")


class Browsers:
    """An ASGI app behind that door. ``origins``: of other sites that may come; ``*`` is any of them.

    ``only_here``: whether the server must be called by a name of this machine, or of one of these sites.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], only_here: Callable[[], bool]) -> None:
        self.bare = app
        self.origins, self.only_here = frozenset(origin.rstrip("/").lower() for origin in origins), only_here
        self.hosts = frozenset(filter(None, map(_netloc, self.origins)))
        self.app: ASGIApp = app
        if origins:
            kept = sorted(self.origins)
            self.app = CORSMiddleware(
                app, allow_origins=kept, allow_methods=METHODS, allow_headers=["*"], expose_headers=["*"]
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (why := self._stranger(scope)):
            await _refuse(why, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _stranger(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        by_port = (scope.get("server") or ("", None))[1] is not None  # a Unix socket is safe
        if by_port and self.only_here() and not self._is_here(host):
            what = f"this server is not called {host!r}"
            mend = f"call it localhost, give others tokens (`tidings token add`), or say origins = ['http://{host}']"
            return Forbidden(what, why="everybody may come, so it answers to names of this machine only", mend=mend)
        origin = headers.get("origin", "").lower()
        if not origin or "*" in self.origins or origin in self.origins or (host and _netloc(origin) == host.lower()):
            return None
        why = "its origin is another site"
        return Forbidden(f"a page of {origin!r} may not come", why=why, mend=f"add it: origins = [{origin!r}]")

    def _is_here(self, host: str) -> bool:
        return not host or is_loopback(host_of(f"//{host}")) or host.lower() in self.hosts


async def _refuse(error: Forbidden, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":  # closed before it is accepted: the handshake is answered by 403
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": error.what[:120]})
        return
    await problem(error)(scope, receive, send)


def host_of(origin: str) -> str:
    """The host of an origin, without its port; ``""`` where it has none, or is none."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    """The host of an origin, as ``Host`` has it."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
