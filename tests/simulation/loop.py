"""The event loop of one simulated process: it runs a callback when it is told to, in virtual time.

Each process has its own, so that one can be frozen, or be gone from one callback to the next, while others go on.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from heapq import heappop, heappush
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any

from tidings.kernel.clock import Clock


class Time:
    """The clocks of one simulated machine. Each look takes a microsecond, so that code which takes turns does."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def monotonic(self) -> float:
        self.elapsed += 1e-6
        return 1_000.0 + self.elapsed

    def now(self) -> float:
        return 1_767_225_600.0 + self.elapsed


class Ordered(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address: every run of a schedule is the same."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class StepLoop(asyncio.AbstractEventLoop):
    """``run`` runs some of what is ready. A closed loop forgets everything and takes nothing more."""

    def __init__(self, time: Time) -> None:
        self._time, self.clock = time, Clock(now=time.now, monotonic=time.monotonic)
        self.ready: deque[asyncio.Handle] = deque()
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.errors: list[BaseException] = []
        self.tasks: list[Coroutine[Any, Any, Any]] = []
        self._order, self._closed = 0, False

    def run(self, most: int, stop: Callable[[], bool]) -> None:
        """Up to ``most`` callbacks, or until ``stop()``."""
        with self.running():
            while most and self.ready and not stop():
                most -= 1
                handle = self.ready.popleft()
                if not handle.cancelled():
                    handle._run()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the loop that runs."""
        _set_running_loop(self)
        try:
            yield
        finally:
            _set_running_loop(None)

    def wake(self) -> bool:
        """Timers that are due become ready; whether anything is."""
        now = self.time()
        while self.timers and (self.timers[0][0] <= now or self.timers[0][2].cancelled()):
            self.ready.append(heappop(self.timers)[2])
        return bool(self.ready)

    def time(self) -> float:
        return 1_000.0 + self._time.elapsed

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._closed:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._order += 1
        if not self._closed:
            heappush(self.timers, (when, self._order, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = Ordered(coro, loop=self, **more)
        self.tasks.append(coro)
        task.number = len(self.tasks)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed and isinstance(error := context.get("exception"), BaseException):
            self.errors.append(error)

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self.ready.clear()
        self.timers.clear()
        for coroutine in self.tasks:
            if getcoroutinestate(coroutine) == CORO_CREATED:
                coroutine.close()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...
