"""What a message lacks is looked up elsewhere (EIP: Content Enricher). The enricher is a plain handler:

    customers = Lookup(fetch_customer, ttl="5m", size=10_000)

    @app.on(orders, to=addressed)
    async def enrich(order: Order) -> Addressed:
        return Addressed(order, await customers(order.customer))

What is hard is here: a lookup that many handlers share and that asks no more than it must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import seconds

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lookup(Generic[K, V]):
    """A cached ``fetch(key)``, for the handlers of one process: ``await lookup(key)``.

    However many ask for a key at once, it is fetched once. What was fetched is served for ``ttl``, at most ``size``
    keys, the least recently used go first. ``None``, for what does not exist, is kept for ``missing`` (default
    ``ttl``). An error is raised to everybody who waits for it, and is not kept: the message is tried again, and so is
    the fetch. It goes on when a handler that waits for it is cancelled.

    Raises ``InvalidOption``.
    """

    def __init__(
        self,
        fetch: Callable[[K], Awaitable[V]],
        *,
        ttl: Duration = "5m",
        missing: Duration | None = None,
        size: int = 10_000,
    ) -> None:
        if not callable(fetch):
            raise InvalidOption(f"fetch cannot be {fetch!r}", mend="an async function of a key")
        if type(size) is not int or size < 1:
            raise InvalidOption(f"size cannot be {size!r}", mend="a number of keys, at least 1")
        self.fetch, self.size, self.ttl = fetch, size, seconds(ttl, "ttl")
        self.missing = self.ttl if missing is None else seconds(missing, "missing")
        self._known: dict[K, tuple[float, V]] = {}  # until when; the least recently used first
        self._coming: dict[K, asyncio.Task[V]] = {}

    async def __call__(self, key: K) -> V:
        """The value of a key; raises what ``fetch`` raises."""
        loop = asyncio.get_running_loop()
        if (found := self._known.pop(key, None)) and found[0] > loop.time():
            self._known[key] = found
            return found[1]
        task = self._coming.get(key)
        if task is None or task.get_loop() is not loop:
            task = self._coming[key] = loop.create_task(self._fetched(key))
        return await asyncio.shield(task)

    def forget(self, key: K) -> None:
        """Fetch this key anew when it is asked for next: it has changed. What is being fetched is not kept."""
        self._known.pop(key, None)
        self._coming.pop(key, None)

    async def _fetched(self, key: K) -> V:
        task = asyncio.current_task()
        try:
            value = await self.fetch(key)
            ttl = self.missing if value is None else self.ttl
            if ttl and self._coming.get(key) is task:
                self._known[key] = asyncio.get_running_loop().time() + ttl, value
                if len(self._known) > self.size:
                    del self._known[next(iter(self._known))]
            return value
        finally:
            if self._coming.get(key) is task:
                del self._coming[key]
