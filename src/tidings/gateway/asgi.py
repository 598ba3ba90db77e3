"""The HTTP side as an ASGI app: served by ``tidings serve``, or mounted in an app of your own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from tidings import App

from . import asking, events, openapi, operations, page, publishing, receiving, topics, websocket
from .access import Access
from .browsers import Browsers
from .gateway import Gateway
from .limits import Limits
from .receiving import WebhookIn
from .site import Site, unrouted


def asgi(
    app: App | str,
    *,
    access: Access | None = None,
    limits: Limits = Limits(),  # noqa: B008
    webhooks_in: Sequence[WebhookIn] = (),
    origins: Sequence[str] = (),
    only_here: Callable[[], bool] | None = None,
) -> Starlette:
    """An ASGI app that opens a bus to HTTP and WebSocket clients.

    ``app``: whose default bus it is, or a bus URL. ``access``: who may do what; default: anybody everything, so listen
    on the loopback only. ``webhooks_in``: who may send webhooks here. ``origins``, ``only_here``: see ``Browsers``;
    default: without ``access`` it must be called by a name of this machine, or of ``origins``; else by any.
    Mounted, it opens the bus at its first request; run by itself, at its start.
    """
    unguarded = access is None
    site = Site(Gateway(App("gateway", app) if isinstance(app, str) else app, limits), access or Access())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await site.ready()
        try:
            yield
        finally:
            await site.gateway.close()

    routes: list[BaseRoute] = [
        *publishing.routes(site),
        *asking.routes(site),
        *events.routes(site),
        *websocket.routes(site),
        *topics.routes(site),
        *page.routes(),
        *openapi.routes(site),
        *receiving.routes(site, webhooks_in),
        *operations.routes(site),
    ]
    door = Middleware(Browsers, origins=origins, only_here=only_here or (lambda: unguarded and site.access.anonymous))
    refusals = {HTTPException: unrouted}
    built = Starlette(routes=routes, lifespan=lifespan, middleware=[door], exception_handlers=refusals)
    built.state.site = site
    return built
