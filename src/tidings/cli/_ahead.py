"""Working ahead of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")

FULL = 20_000  # items made and not yet taken: then the thread waits


class Ahead(Generic[T]):
    """A thread that makes items while the loop is busy with those before.

    A daemon: one that waits for standard input holds nobody up.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self.items, self.ready, self.room = items, deque[T](), Event()
        self.loop, self.some, self.hungry = asyncio.get_running_loop(), asyncio.Event(), False
        self.ended = False
        self.error: BaseException | None = None
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(RuntimeError):  # the loop was closed under us
            try:
                for item in self.items:
                    self.ready.append(item)
                    if self.hungry:
                        self._tell()
                    while len(self.ready) >= FULL:
                        self.room.clear()
                        if len(self.ready) >= FULL:
                            self.loop.call_soon_threadsafe(self.some.set)
                            self.room.wait()
            except BaseException as error:
                self.error = error
            self.ended = True
            self._tell()

    def _tell(self) -> None:
        self.hungry = False
        self.loop.call_soon_threadsafe(self.some.set)

    async def begun(self, *, soon: bool) -> None:
        """Wait until there are many – or one: ``soon`` – or all; raises what ends them before that."""
        self.hungry = soon
        if not (soon and self.ready):
            await self.some.wait()
        if self.error is not None:
            raise self.error

    async def batches(self, most: int) -> AsyncIterator[list[T]]:
        """As many as are ready, in their order, at least one and at most ``most``; then what ended them is raised."""
        while True:
            if count := min(len(self.ready), most):
                batch = [self.ready.popleft() for _ in range(count)]
                self.room.set()
                yield batch
            elif self.ended and not self.ready:
                if self.error is not None:
                    raise self.error
                return
            else:
                self.some.clear()
                self.hungry = True
                if not (self.ready or self.ended):
                    await self.some.wait()
