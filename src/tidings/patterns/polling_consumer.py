"""EIP: Polling Consumer. Messages are taken when somebody asks, one by one; a group like any other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Defer, Duration, InvalidOption, Retry
from tidings.kernel.message import Message, seconds
from tidings.kernel.outcome import DEFER_LIMIT

from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

T = TypeVar("T")

Handed = tuple[Message[T], "asyncio.Future[None]"]


class PollingConsumer(Generic[T]):
    """Takes the messages of a group when it is asked to; made by ``polling_consumer``."""

    def __init__(self, app: App, group: str) -> None:
        self.app, self.group = app, group
        self._waiting: deque[asyncio.Future[Handed[T]]] = deque()

    @asynccontextmanager
    async def receive(self, timeout: Duration | None = None) -> AsyncIterator[Message[T] | None]:
        """``async with consumer.receive("5s") as message:`` the next message, or None if none came in time.

        It is settled when the block ends. An exception in the block is a failure of the message, as a handler's: it is
        tried again, and comes to the dead letters at last; cancelling the block gives it back, uncounted. Raises
        ``NotFound`` unless the app is running.
        """
        limit = None if timeout is None else seconds(timeout, "timeout")
        self.app.pause(self.group, False)
        waiter: asyncio.Future[Handed[T]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        handed: Handed[T] | None = None
        try:
            await asyncio.wait({waiter}, timeout=limit)
            handed = waiter.result() if waiter.done() else None
        finally:
            if handed is None:
                self._leave(waiter)
        if handed is None:
            yield None
            return
        message, done = handed
        try:
            yield message
        except BaseException as error:
            _end(done, error if isinstance(error, Exception) else _back(message))
            raise
        _end(done)

    def _leave(self, waiter: asyncio.Future[Handed[T]]) -> None:
        """Wait no longer; what was handed over in this moment goes back."""
        if waiter.done():
            message, done = waiter.result()
            _end(done, _back(message))
        else:
            self._waiting.remove(waiter)
            self._rest()

    def _rest(self) -> None:
        """Nobody asks: nothing is received, and what was received and not handed over goes back to the group."""
        if not self._waiting:
            self.app.pause(self.group)

    async def hand(self, message: Message[Any]) -> None:
        """The handler of the group: over when the block that got the message is."""
        if not self._waiting:
            self._rest()
            raise _back(message)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.popleft().set_result((message, done))
        self._rest()
        await done


def polling_consumer(app: App, topic: Topic[T], /, **options: Unpack[Durable]) -> PollingConsumer[T]:
    """A consumer that takes messages only when asked. EIP: Polling Consumer.

    Declare it before the app opens. ``options``: as in ``app.on``; ``group`` is needed, and processes share it as
    handlers do; ``concurrency`` (default 1): so many blocks at once; ``timeout``: of a block. While nobody asks, it
    holds nothing. Raises what ``app.on`` raises.
    """
    group = options.get("group", "")
    if not group:
        raise InvalidOption("a polling consumer needs a group", mend=f'group="{app.name}.desk"')
    consumer: PollingConsumer[T] = PollingConsumer(app, group)

    async def poll(message: Message[T]) -> None:
        await consumer.hand(message)

    more: Durable = {"concurrency": 1, **options}
    app.on(topic, **more)(describe(poll, "polling consumer"))
    return consumer


def _end(done: asyncio.Future[None], error: BaseException | None = None) -> None:
    if done.done():
        return  # its deadline was over
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _back(message: Message[Any]) -> Exception:
    """Not now. Of an old message that counts as a failure: what is deferred when it is old is dead."""
    old = current_clock().now() - message.time > DEFER_LIMIT
    return Retry(0.0, "nobody asked for it") if old else Defer(0.0, "nobody asked for it")
