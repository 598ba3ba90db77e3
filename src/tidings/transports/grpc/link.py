"""The stream to the server: many ask on it at once; lost, it is made again, for ever."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
from grpc import aio

from tidings.kernel.errors import BusUnavailable, TidingsError
from tidings.kernel.message import seconds
from tidings.kernel.transport import Event

from . import GRPC
from .wire import AUTHORIZATION, DETAILS, TRANSPORT, VERSION, error, framed, heard, pb, some

log = logging.getLogger("tidings")

CONNECT, ALIVE = 5.0, 10.0  # seconds for connecting; between signs of life, and to answer one
FIRST, LONGEST = 0.05, 2.0  # seconds between tries to connect

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of our own
    ("grpc.max_receive_message_length", -1),  # what we asked for
    ("grpc.max_send_message_length", -1),  # the server says what it takes
    ("grpc.keepalive_time_ms", int(ALIVE * 1000)),
    ("grpc.keepalive_timeout_ms", int(ALIVE * 1000)),
    ("grpc.http2.ping_timeout_ms", int(ALIVE * 1000)),  # else a minute, whatever the other says
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", int(FIRST * 1000)),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(LONGEST * 1000)),
)
UNKNOWN = grpc.StatusCode.UNIMPLEMENTED
THERE = "is a `tidings serve` there?"
MENDS = {
    grpc.StatusCode.UNAUTHENTICATED: "?token= says who you are; `tidings token add` makes one",
    grpc.StatusCode.PERMISSION_DENIED: "the server's operator gives the right `member`",
    UNKNOWN: "is it a `tidings serve`, and of this version?",
}

GONE = (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError)  # what writing to a stream that ended raises

Notify = Callable[[Event], None]


class Lost(Exception):
    """No answer will come. ``sent``: perhaps it was done."""

    def __init__(self, sent: bool) -> None:
        super().__init__()
        self.sent = sent


EXPECTED = (aio.AioRpcError, TimeoutError, TidingsError, Lost)  # of connecting


def said(error: BusUnavailable) -> str:
    """In a line."""
    return f"{error.what}: {error.why}" if error.why else error.what


class Asked:
    """An ask on its way, and what has come of its answer."""

    __slots__ = ("answer", "parts")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Sequence[Any]] = loop.create_future()
        self.parts: list[Any] = []


class Link:
    """``returned`` is awaited on each new stream before anybody may ask, ``lost`` called when one is gone."""

    def __init__(self, options: GRPC, returned: Callable[[], Awaitable[None]], lost: Callable[[], None]) -> None:
        self.options, self._returned, self._lost = options, returned, lost
        self.wait = seconds(options.publish_wait, "publish_wait")
        self.channel: aio.Channel | None = None
        self.up, self.more = asyncio.Event(), asyncio.Event()
        self.numbers = count(1)
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.asked: dict[int, Asked] = {}
        self.stream: Any = None
        self.writing: asyncio.Task[None] | None = None
        self.reading: asyncio.Task[None]
        self.running: asyncio.Task[None] | None = None
        self.why = ""  # the last stream ended
        self.away: BusUnavailable | None = None  # why it is not back
        self.epoch, self.live = 0, False  # which stream it is, and that it is there

    # -- life cycle

    async def open(self, notify: Notify) -> Any:
        """Connect: what the server says of itself. Raises ``BusUnavailable``."""
        self.notify = notify
        credentials = self.options.credentials()
        if credentials is None:
            self.channel = aio.insecure_channel(self.options.target, OPTIONS)
        else:
            self.channel = aio.secure_channel(self.options.target, credentials, OPTIONS)
        try:
            async with asyncio.timeout(CONNECT):
                welcome = await self._connect()
        except BaseException as failed:
            self._end()
            await self.channel.close()
            if isinstance(failed, aio.AioRpcError | TimeoutError):
                raise self._unavailable(failed) from failed
            raise
        self.up.set()
        self.running = asyncio.get_running_loop().create_task(self._run())
        return welcome

    async def close(self) -> None:
        """Say goodbye: the server gives back at once what is still in hand."""
        if self.running is None or self.channel is None:
            return
        running, self.running = self.running, None
        if self.up.is_set():
            self.tell(self.epoch, leave=pb.Nothing())
            await asyncio.wait({running}, timeout=CONNECT)
        running.cancel()
        await asyncio.wait({running})
        self._end()
        await self.channel.close()

    async def _connect(self) -> Any:
        """A new stream, and its welcome."""
        assert self.channel is not None
        method: Any = self.channel.stream_stream(f"/{TRANSPORT}/Join", None, pb.Answers.FromString)
        token = self.options.token
        self.stream = stream = method(metadata=((AUTHORIZATION, f"Bearer {token}"),) if token else None)
        frame = await stream.read()  # before anything is written: a write that fails hides why
        if frame is aio.EOF:
            raise aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), "it says nothing")
        if frame is None or not frame.answers:
            raise BusUnavailable(f"{self.options.target} says nothing that is known here", mend=MENDS[UNKNOWN])
        welcome = frame.answers[0].welcome
        if welcome.version != VERSION:
            what = f"{self.options.target} speaks version {welcome.version} of tidings.v1.Transport, not {VERSION}"
            raise BusUnavailable(what, mend="use the same version of Tidings on both sides")
        loop = asyncio.get_running_loop()
        self.more.clear()
        self.epoch, self.live = self.epoch + 1, True
        self.writing, self.reading = loop.create_task(self._write(stream)), loop.create_task(self._read(stream))
        for event in frame.events:  # of opening the bus
            self.notify(heard(Event, event))
        return welcome

    async def _run(self) -> None:
        while True:
            await asyncio.wait({self.reading})
            if self.running is None:
                return
            self.notify(Event("lost", 1, self.why))
            await self._again()
            self.notify(Event("connected"))

    async def _again(self) -> None:
        """Until it is there again; who subscribed before has subscribed again by then."""
        pause = FIRST
        while not self.up.is_set():
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST)
            try:
                async with asyncio.timeout(4 * CONNECT):
                    await self._connect()
                    await self._returned()
                if not self.reading.done():
                    self.away = None
                    self.up.set()
            except Exception as failed:  # whatever it is, we go on trying
                self._end()
                self._failed(failed)

    def _failed(self, error: Exception) -> None:
        """It is not back. Whoever waits is told why, and the log once a reason."""
        before, self.away = self.away, self._unavailable(error)
        known = before is not None and said(before) == said(self.away)
        traceback = None if isinstance(error, EXPECTED) else error
        log.log(logging.INFO if known else logging.WARNING, "not back yet: %s", said(self.away), exc_info=traceback)

    # -- asking

    async def ask(self, **what: Any) -> Sequence[Any]:
        """The answer, in one piece or more. Raises what the server refuses, ``Lost``, and ``BusUnavailable`` when it
        is not there for as long as a publish may wait.
        """
        await self.there()
        return await self.put(self.epoch, **what)

    async def there(self) -> None:
        """Until it is; raises ``BusUnavailable`` when that takes too long."""
        if self.up.is_set():
            return
        try:
            async with asyncio.timeout(self.wait):
                await self.up.wait()
        except TimeoutError:
            what, why = f"{self.options.target} is not there, and was waited for", f"for {self.wait:g} s"
            if self.away is None:
                raise BusUnavailable(what, why=why, mend="is the server running?") from None
            raise BusUnavailable(what, why=f"{why}; {said(self.away)}", mend=self.away.mend) from None

    def has(self, epoch: int) -> bool:
        """Whether that stream is the one that is there."""
        return self.live and epoch == self.epoch

    async def put(self, epoch: int, /, **what: Any) -> Sequence[Any]:
        """The same, now and on that stream or not at all: numbers of consumers and deliveries begin anew on each."""
        if not self.has(epoch):
            raise Lost(False)
        number = next(self.numbers)
        self.waiting.append((number, pb.Ask(number=number, **what).SerializeToString()))
        asked = self.asked[number] = Asked(asyncio.get_running_loop())
        self.more.set()
        return await asked.answer

    def tell(self, epoch: int, /, **what: Any) -> None:
        """Ask for nothing, on that stream."""
        if self.has(epoch):
            self.waiting.append((0, pb.Ask(**what).SerializeToString()))
            self.more.set()

    async def _write(self, stream: Any) -> None:
        with suppress(*GONE):  # reading tells why
            while True:
                await self.more.wait()
                self.more.clear()
                while self.waiting and stream is self.stream:
                    await stream.write(framed((1, ask) for _, ask in some(self.waiting)))

    async def _read(self, stream: Any) -> None:
        self.why = "the server ended it"
        try:
            while (frame := await stream.read()) is not aio.EOF:
                for answer in frame.answers:
                    self._answered(answer)
                for event in frame.events:
                    self.notify(heard(Event, event))
        except aio.AioRpcError as failed:
            self.why = failed.details() or str(failed.code())
        except Exception as failed:  # what it says is not understood
            self.why = "it says what is not known here"
            log.warning("the stream of %s is given up", self.options.target, exc_info=failed)
        finally:
            if stream is self.stream:
                self._end()

    def _answered(self, answer: Any) -> None:
        asked = self.asked.get(answer.number)
        if asked is None:
            return
        asked.parts.append(answer)
        if answer.more:
            return
        del self.asked[answer.number]
        if asked.answer.done():
            return
        if answer.HasField("error"):
            asked.answer.set_exception(error(answer.error))
        else:
            asked.answer.set_result(asked.parts)

    def _end(self) -> None:
        """The stream is gone: nobody waits for it."""
        self.live = False
        self.up.clear()
        self._lost()
        if self.writing is not None:
            self.writing.cancel()
        if self.stream is not None:
            self.stream.cancel()
        unsent = {number for number, _ in self.waiting}
        self.waiting.clear()
        asked, self.asked = self.asked, {}
        for number, each in asked.items():
            if not each.answer.done():
                each.answer.set_exception(Lost(number not in unsent))

    def _unavailable(self, failed: Exception) -> BusUnavailable:
        if isinstance(failed, BusUnavailable):
            return failed
        what = f"{self.options.target} cannot be reached"
        if isinstance(failed, TidingsError):  # of subscribing again
            return BusUnavailable(f"{self.options.target} refuses", why=failed.what, mend=failed.mend)
        if isinstance(failed, TimeoutError):
            return BusUnavailable(what, why="no answer in time", mend=THERE)
        if isinstance(failed, Lost):
            return BusUnavailable(what, why=self.why, mend=THERE)
        if not isinstance(failed, aio.AioRpcError):
            return BusUnavailable(what, why=f"{type(failed).__name__}: {failed}", mend=MENDS[UNKNOWN])
        why, mend = failed.details() or str(failed.code()), MENDS.get(failed.code(), "")
        details = dict(failed.trailing_metadata() or ()).get(DETAILS)
        if isinstance(details, bytes):
            told = pb.Error.FromString(details)
            what, why, mend = f"{self.options.target} refuses", told.what, mend or told.mend
        return BusUnavailable(what, why=why, mend=mend or THERE)
