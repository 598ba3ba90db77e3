"""What the kernel sees of PostgreSQL: publishing, consumers, wake-ups, and a look inside.

Beside the writer three tasks live as long as the bus is open. *Tailing* asks what is new, when told to (by NOTIFY, on a
connection of its own) or after a while, and wakes who waits for it. *Listening* keeps that connection, which is also
this process's presence. *Keeping* (``hands.py``) sends the heartbeat, buries the dead, drops what need not be retained.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from tidings.kernel import transport as spi
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusError, NoAnswerer, NotFound, NotOpen, TidingsError, TooLarge, nearest
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import DEAD, REPLY, is_pattern, matches
from tidings.kernel.transport import Event, Failure, GroupInfo, Stored, TopicInfo
from tidings.transports._matcher import Matcher, expression
from tidings.transports._records import messages
from tidings.transports._waiting import Waiting

from . import Postgres
from .connections import BROKEN, MOST, Connections, prepare
from .consumers import GroupConsumer, Lane, LiveConsumer
from .hands import Hands, Held, Keeper, Outgoing, Row, rows_of
from .keeping import Keeping, Reader
from .writer import Batch, Writer

MAX_PAYLOAD, MAX_HEADERS = 16 * 1024 * 1024, 1024 * 1024  # bytes
LISTENING = 1.0  # seconds between looks for news, while NOTIFY works
SIGNALS = 0.002  # seconds between signals to other processes, at least

NATIVE = ("ordered", "delay", "crash_count", "start", "replay", "priority", "expiry", "wildcards", "peek", "request")


class PostgresTransport(Keeping):
    """The PostgreSQL bus. ``client`` makes a connection: ``con = await bus.client()``; close it yourself."""

    def __init__(self, options: Postgres) -> None:
        self.options, self.lease = options, options.lease_seconds
        self.capabilities = self._capabilities("on")
        self.client: Any = None
        self.writer: Writer = None  # type: ignore[assignment]

    def _capabilities(self, synchronous: str) -> spi.Capabilities:
        return spi.Capabilities(
            durable="process" if synchronous == "off" else "power",
            ordering="total",
            delay_resolution=0.02,
            lease="timer",
            fence="native",
            atomic_settle=True,
            publish_atomic=True,
            stable_id=True,
            max_payload=MAX_PAYLOAD,
            provision="native",
            **dict.fromkeys(NATIVE, "native"),  # type: ignore[arg-type]
        )

    # -- life cycle

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.notify, self.clock, self.loop = notify, current_clock(), asyncio.get_running_loop()
        self.matcher: Matcher[Waiting] = Matcher()
        self.lanes: dict[int, Lane] = {}
        self.names: dict[int, str] = {}
        self.hands, self.suspects, self.denied = Hands(), 0, set[Any]()
        self.keeper = Keeper(self, self.hands)
        self.connections, self.reader = Connections(self.options, notify), Reader(self)
        self.seen, self.head, self.soonest = 0, 0, float("inf")
        self.news, self.signals, self.signalled = asyncio.Event(), set[int](), 0.0
        self.listening: asyncio.Future[None] | None = None
        self.settled = asyncio.Event()  # present, or it is known that that is not to be had now
        await self.connections.open()
        try:
            synchronous = await prepare(self.connections)
            self.capabilities = self._capabilities(synchronous)
            await self.keeper.enter()
            await self.tail_once()
        except BaseException:
            await self.connections.close()
            raise
        self.client = self.connections.connect
        self.writer = Writer(self.connections, self.hands, synchronous, self._told, self._held_up)
        self.tasks = [
            self.loop.create_task(each())
            for each in (self._tail, self._listen, self.keeper.keeping_house, self.keeper.beating)
        ]
        await self.settled.wait()
        notify(Event("connected"))

    async def close(self) -> None:
        if self.client is None:
            return
        self.client = None
        for lane in self.lanes.values():
            for consumer in lane.consumers:
                consumer.stop()
        with suppress(TidingsError):
            await self.writer.turn(self.keeper.depart)
        await self.writer.stop()
        await self.connections.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def call(self, function: str, *args: Any, wait: float | None = None, repeat: bool = False) -> Any:
        """The row that a function of the schema answers."""
        places = ", ".join(f"${n}" for n in range(1, len(args) + 1))
        query = f'SELECT * FROM "{self.options.namespace}".{function}({places})'
        try:
            return await self.connections.call(query, *args, wait=wait, repeat=repeat)
        except BusError as error:
            raise _named(error) from error

    async def value(self, function: str, *args: Any, repeat: bool = False) -> Any:
        return (await self.call(function, *args, repeat=repeat))[0]

    # -- publishing and subscribing

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        if self.client is None:
            raise NotOpen(f"the bus {self.options.shown()} is not open")
        outgoing = await self.prepare(messages)
        if outgoing.refused is not None:
            return [Failure(index, "rejected", outgoing.refused) for index in range(len(messages))]
        return await self.writer.publish(outgoing)

    async def prepare(self, messages: Sequence[Message[Any]]) -> Outgoing:
        """Messages as rows, or why they cannot be stored."""
        rows, total = rows_of(messages, self.clock.now())
        if total > MAX_PAYLOAD and (error := too_large(messages, rows)):
            return Outgoing(refused=error)
        asking = [m.destination for m in messages if m.reply_to is not None]
        if asking and (deaf := await self.value("unanswered", asking, repeat=True)):
            mend = "start the app that answers it"
            return Outgoing(refused=NoAnswerer(f"nobody answers {deaf[0]!r}", mend=mend))
        return Outgoing(rows, total)

    async def subscribe(self, subscription: spi.Subscription) -> spi.Consumer:
        if self.client is None:
            raise NotOpen(f"the bus {self.options.shown()} is not open")
        if subscription.group is None:
            await self.tail_once()
            return LiveConsumer(self, subscription.pattern, self.seen)
        s = subscription
        args = s.group, s.app, s.pattern, *like(s.pattern), s.start, s.ordered
        group = int(await self.writer.turn(lambda: self.value("register", self.hands.member, *args, repeat=True)))
        self.signal({group})
        return GroupConsumer(self, group, subscription)

    async def publish_in(self, connection: Any, *messages: Message[Any], source: str = "") -> None:
        """Publish within the transaction that is open on ``connection``: delivered after its commit, or never.

        Drafts or sealed messages. ``connection``: of asyncpg, of psycopg (``AsyncConnection``), or SQLAlchemy's
        ``AsyncConnection`` or ``AsyncSession``. Raises ``TooLarge``, ``PayloadRefused``, ``InvalidOption``.
        """
        from .enlisting import publish_in

        await publish_in(self.options.namespace, connection, messages, source)

    def publish_in_sync(self, connection: Any, *messages: Message[Any], source: str = "") -> None:
        """The same for synchronous connections, in any thread: psycopg, SQLAlchemy's ``Connection`` or ``Session``."""
        from .enlisting import publish_in_sync

        publish_in_sync(self.options.namespace, connection, messages, source)

    # -- waking up

    def _told(self, batch: Batch, lost: list[Held], answer: Any) -> None:
        """After a commit of ours: who has something to do?"""
        where = {row[0] for row in batch.rows}
        topics, channels = {topic for topic, _ in where}, self.writer.channels
        stored, unrouted = answer["stored"] or 0, answer["unrouted"]
        self.head = max(self.head, stored)
        if stored - len(batch.rows) <= self.seen:  # nobody else stored between
            self.seen = self.head
        due = min((row[1] for row in batch.rows if row[1] is not None), default=self.soonest)
        if due < self.soonest:
            self.soonest = due
            self.news.set()
        if any(channels[each] not in self.names for each in where):
            self.look_for_news()
        self.keeper.doubt({held.group for held in lost})
        self._wake_topics(topics)
        self.wake_groups(batch.woken)
        if deaf := {topic for topic, priority in where if channels[topic, priority] in unrouted} if unrouted else set():
            silent = {name for name in deaf if not name.startswith((DEAD, REPLY)) and not self.matcher.match(name)}
            if silent:
                count = sum(row[0][0] in silent for row in batch.rows)
                self.notify(Event("unrouted", count, min(silent)))
        if topics or batch.woken:
            self.signal(group for group in batch.woken if group > 0)

    def _wake_topics(self, topics: Iterable[str]) -> None:
        for waiting in {found for topic in topics for found in self.matcher.match(topic)}:
            waiting.wake()

    def wake_groups(self, groups: Iterable[int]) -> None:
        for group in self.lanes if -1 in (groups := set(groups)) else groups:
            if lane := self.lanes.get(group):
                for consumer in lane.consumers:
                    consumer.wake()

    def signal(self, groups: Iterable[int]) -> None:
        """Tell the other processes, soon: all that is to be told at once."""
        if not self.signals:
            wait = max(0.0, self.signalled + SIGNALS - self.loop.time())
            self.loop.call_later(wait, lambda: self.loop.create_task(self._signal()))
        self.signals |= {0, *groups}

    async def _signal(self) -> None:
        groups, self.signals, self.signalled = self.signals, set(), self.loop.time()
        with suppress(TidingsError):  # they look by themselves, a little later
            await self.call("signal", sorted(groups), wait=0.0)

    def look_for_news(self) -> None:
        self.news.set()

    async def _tail(self) -> None:
        while self.client is not None:
            rest = LISTENING if self.listening is not None else seconds(self.options.poll)
            wait = max(0.001, min(rest, self.soonest - self.clock.now()))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.news.wait()
            self.news.clear()
            with suppress(TidingsError):
                await self.tail_once()

    async def tail_once(self) -> None:
        """Learn what there is that was not known; wakes whom it concerns."""
        asked = self.seen
        row = await self.call("news", asked, max(self.names, default=0), repeat=True)
        new = {id: topic for id, topic, _ in json.loads(row["new"] or "[]")}
        self.names |= new
        self._wake_topics(new.values())
        self.soonest = float("inf") if row["due"] is None else self.clock.now() + row["due"]
        if row["seen"] < asked:  # a server that was killed lost numbers it had not stored; they come again
            self.seen = self.head = row["seen"]
        elif row["seen"] > self.seen or row["channels"] is None:
            channels = self.names if row["channels"] is None else row["channels"]
            self.seen, self.head = row["seen"], max(self.head, row["seen"])
            self._wake_topics({self.names[id] for id in channels if id in self.names})
        if row["due"] is not None and row["due"] <= 0:
            await self.value("move", repeat=True)
            self.news.set()

    async def _listen(self) -> None:
        """Keep a connection that listens and is this process's presence; not behind a pooler, which shares them."""
        if self.connections.pooled and not self.options.direct:
            self.settled.set()
            return
        pause, place = 0.05, f'"{self.options.namespace}"'
        while self.client is not None:
            try:
                con = await self.connections.connect(self.options.direct)
                try:
                    self.listening = self.loop.create_future()
                    con.add_termination_listener(lambda _: self._deaf())
                    await con.add_listener(f"tidings.{self.options.namespace}", self._heard)
                    member, pause = 0, 0.05
                    while not self.listening.done():
                        if member != self.hands.member:
                            member = self.hands.member
                            await con.execute(f"SELECT pg_advisory_unlock_all(); SELECT {place}.appear({member})")
                        self.settled.set()
                        self.connections.found()
                        self.news.set()
                        await asyncio.wait({self.listening}, timeout=LISTENING)
                        await con.execute("SELECT 1", timeout=5.0)
                finally:
                    self.listening = None
                    con.terminate()
            except (*BROKEN, asyncpg.PostgresError, TidingsError):
                self.settled.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, MOST)

    def _deaf(self) -> None:
        if self.listening is not None and not self.listening.done():
            self.listening.set_result(None)
            self.connections.lost(ConnectionError("the server closed the connection"))

    def _heard(self, con: Any, pid: int, channel: str, groups: Any) -> None:
        if pid not in self.connections.pids.values():  # of ours we know
            self.news.set()
            self.wake_groups(int(group) for group in groups.split() if group != "0")

    # -- looking inside, mending

    async def _held_up(self) -> None:
        """A commit takes long: is it somebody who keeps the log's lock?"""
        with suppress(TidingsError):
            if told := await self.value("holder", 1.0):
                self.notify(Event("lost", 1, told))

    async def topics(self, pattern: str = ">") -> Sequence[TopicInfo]:
        rows = await self._rows("SELECT * FROM {}.topics_info()")
        return [TopicInfo(*row) for row in rows if matches(pattern, row[0])]

    async def groups(self, pattern: str = ">") -> Sequence[GroupInfo]:
        names = [name for name in await self.value("names") if matches(pattern, name)]
        return [GroupInfo(*row) for row in await self._rows("SELECT * FROM {}.groups_info($1)", names)]

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        await self.tail_once()
        channels = [id for id, name in self.names.items() if expression(pattern).fullmatch(name)]
        found, more = list[Stored](), bool(channels)
        while more and len(found) < limit:
            row = await self.call("live", channels, after, limit - len(found))
            found += map(Stored, row["seqs"] or (), messages(row["records"] or b"", len(row["seqs"] or ())))
            after, more = row["looked"], row["more"]
        return found

    async def position(self) -> int:
        await self.tail_once()
        return self.seen

    async def _rows(self, query: str, *args: Any) -> Any:
        aggregate = query.format(f'"{self.options.namespace}"')
        row = await self.connections.call(f"SELECT array_agg(r) FROM ({aggregate}) r", *args)
        return row[0] or []

    async def rename(self, group: str, to: str) -> None:
        await self._mend("rename", group, to)

    async def drop(self, group: str) -> None:
        await self._mend("drop_group", group)

    async def seek(self, group: str, start: float) -> None:
        await self._mend("seek", group, start)

    async def _mend(self, function: str, group: str, *args: Any) -> None:
        try:
            await self.call(function, group, *args)
        except NotFound as error:
            error.mend = nearest(group, await self.value("names"))
            raise

    async def tick(self, name: str, due: float) -> bool:
        return bool(await self.value("tick", name, due))


def like(pattern: str) -> tuple[str | None, str | None]:
    """A pattern as LIKE, which is fast, and as the regular expression that decides; none for a plain topic."""
    if not is_pattern(pattern):
        return None, None
    near = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%").replace(">", "%")
    return near, f"^(?:{expression(pattern).pattern})$"


def too_large(messages: Sequence[Message[Any]], rows: Sequence[Row]) -> TooLarge | None:
    for message, (*_, record) in zip(messages, rows, strict=True):
        if len(message.body) > MAX_PAYLOAD or len(record) > MAX_PAYLOAD + MAX_HEADERS:
            what = f"a message to {message.destination!r} has {len(record):,} bytes"
            why = f"this bus takes {MAX_PAYLOAD:,}, and {MAX_HEADERS:,} of headers"
            return TooLarge(what, why=why, mend="publish where the data can be found")
    return None


def _named(error: BusError) -> Exception:
    """What the functions raise by codes of their own."""
    state, _, what = (error.why or "").partition(": ")
    if state == "TDG01":
        why = "a process that was silent for longer than its lease is no member any more"
        return NotFound("a group was dropped while its consumer was silent", why=why, mend="start the app again")
    if state == "TDG02":
        return NotFound(what)
    if state == "TDG03":
        return BusError(what, mend="stop the app that consumes it")
    if state == "TDG04":
        return BusError(what, mend="drop one of the two first")
    return error
