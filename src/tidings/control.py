"""Run-time control: what the processes of an app are told while they run, over the bus they share.

An order is a message on ``_tidings.control.<app>``, and so is the answer of each process that obeyed it (the order's id
is its correlation id): that topic is the record of who said what, when and from where, and of what came of it. The
latest order holds. A process that starts later reads it there before it receives anything; where the bus cannot be
looked into it asks those that run. An order that still holds is said again every day, lest retention forget it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Struct

from .kernel.bus import Bus
from .kernel.codec import seal
from .kernel.errors import BusError, Unsupported
from .kernel.message import Message, new_id
from .kernel.settling import AGAIN
from .kernel.topics import INTERNAL
from .kernel.transport import Consumer, Inspectable, Subscription, Transport

if TYPE_CHECKING:
    from .assembly import Assembly
    from .kernel.worker import Worker

log = logging.getLogger("tidings")

CONTROL = INTERNAL + "control."
PAGE, OFTEN, DAY = 1_000, 3600.0, 86400.0  # messages; seconds between looks for orders so old that they are said again
HOST, MOST = socket.gethostname(), 10_000  # handlers at once


class Order(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="order"):
    """What a group shall do; ``None`` leaves something as it is, and a concurrency of 0 is what its code says."""

    group: str
    paused: bool | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=0, le=MOST)] | None = None
    by: str = ""
    again: bool = False  # said before: nobody waits for answers


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="answer"):
    """How a process works a group now."""

    group: str
    host: str
    pid: int
    paused: bool
    concurrency: int
    why: str = ""  # it is not as ordered


class Question(Struct, frozen=True, tag_field="kind", tag="question"):
    """What holds?"""


class Standing(Struct, frozen=True):
    """What holds for a group, by whose order, since when."""

    paused: bool = False
    concurrency: int = 0
    by: str = ""
    at: float = 0.0

    def after(self, order: Order, at: float) -> Standing:
        paused = self.paused if order.paused is None else order.paused
        concurrency = self.concurrency if order.concurrency is None else order.concurrency
        return Standing(paused, concurrency, order.by, at)


Said = Order | Answer | Question
_read = msgspec.json.Decoder(Said).decode


def said(message: Message[Any]) -> Said | None:
    """What a message on a control topic says; ``None`` for what is none of ours."""
    with suppress(msgspec.MsgspecError):
        return _read(message.body)  # type: ignore[no-any-return]
    return None


def draft(app: str, data: Said, answers: str | None = None) -> Message[Any]:
    """A message to all processes of an app."""
    topic, key = CONTROL + app, None if isinstance(data, Question) else data.group
    return Message(topic, data=data, id=new_id(), key=key, type=topic, correlation_id=answers)


def remembers(transport: Transport) -> bool:
    """Whether a bus can show what was ordered."""
    return isinstance(transport, Inspectable) and transport.capabilities.peek != "unavailable"


async def standing(transport: Transport, app: str) -> dict[str, Standing]:
    """What holds for the groups of an app; nothing where the bus cannot show it."""
    found, after = dict[str, Standing](), 0
    while remembers(transport) and isinstance(transport, Inspectable):
        page = await transport.peek(CONTROL + app, after, PAGE)
        for stored in page:
            if isinstance(order := said(stored.message), Order):
                found[order.group] = found.get(order.group, Standing()).after(order, stored.message.time)
        if len(page) < PAGE:
            break
        after = page[-1].position
    return found


class Control:
    """One process's ear on one bus, for its groups there."""

    def __init__(self, bus: Bus, app: str, assemblies: Iterable[Assembly], workers: Mapping[str, Worker]) -> None:
        self.bus, self.app, self.workers = bus, app, workers
        mine = (a for a in assemblies if a.bus is bus and a.group in workers and not a.registration.live)
        self.groups = {assembly.group: assembly for assembly in mine}
        self.standing: dict[str, Standing] = {}
        self.heard = 0  # orders
        self.consumer: Consumer | None = None
        self.tasks = set[asyncio.Task[None]]()

    async def open(self) -> None:
        """Do what was ordered before, and listen. Where that cannot be, the app runs all the same."""
        if not self.groups:
            return
        try:
            self.consumer = await self.bus.transport.subscribe(Subscription(app=self.app, pattern=CONTROL + self.app))
            await self._say(*() if remembers(self.bus.transport) else (Question(),))
        except (BusError, Unsupported) as error:
            log.warning("%s cannot be controlled while it runs: %s", self.app, error)
        else:
            await self._look()
            self._start(self._listen(self.consumer))
            self._start(self._repeat())

    async def close(self) -> None:
        if self.consumer is not None:
            self.consumer.stop()
            for task in (tasks := tuple(self.tasks)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.consumer.close()

    def look(self) -> None:
        """The bus was lost and is back: orders may have been given meanwhile."""
        if self.consumer is not None:
            self._start(self._look())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(task := asyncio.get_running_loop().create_task(work))
        task.add_done_callback(self.tasks.discard)

    async def _look(self) -> None:
        before, found = -1, dict[str, Standing]()
        try:
            while before != self.heard:  # what is heard meanwhile is later than what was read
                before = self.heard
                found = await standing(self.bus.transport, self.app)
        except BusError as error:
            log.warning("what was ordered to %s cannot be read: %s", self.app, error)
        for group in found.keys() & self.groups.keys():
            self._apply(group, found[group])

    async def _listen(self, consumer: Consumer) -> None:
        while True:
            try:
                batch = await consumer.receive(PAGE)
                answers = [self._hear(said(delivery.message), delivery.message) for delivery in batch]
                for replies, asked in filter(None, answers):  # all was obeyed, whatever becomes of the answers
                    await self._say(*replies, answers=asked)
                if not batch:
                    return
            except BusError as error:
                log.warning("%s could not listen or answer: %s", self.app, error)
                await asyncio.sleep(AGAIN)

    def _hear(self, what: Said | None, message: Message[Any]) -> tuple[list[Order] | list[Answer], str | None] | None:
        """Do as is said; what is to be answered, and to whom."""
        if isinstance(what, Question):
            return self._orders(), None
        if not isinstance(what, Order) or what.group not in self.groups:
            return None
        self.heard += 1
        self._apply(what.group, self.standing.get(what.group, Standing()).after(what, message.time))
        return None if what.again else ([self._answer(what)], message.id)

    def _apply(self, group: str, new: Standing) -> None:
        worker, assembly, old = self.workers[group], self.groups[group], self.standing.get(group, Standing())
        self.standing[group] = new
        if old.paused != new.paused:
            worker.pause(new.paused, "control")
            state = f"is paused until `tidings resume {group}`" if new.paused else "goes on"
            log.warning("%s %s, as %s ordered", group, state, new.by)
        concurrency = new.concurrency or worker.work.concurrency
        if concurrency != worker.concurrency and assembly.registration.role != "tick":
            if assembly.executor is not None:
                assembly.executor.resize(concurrency)
            worker.resize(concurrency)
            log.warning("%s handles %d at once, as %s ordered", group, concurrency, new.by)

    def _answer(self, order: Order) -> Answer:
        worker, why = self.workers[order.group], ""
        if order.paused is False and worker.paused:
            why = "the app itself has paused it"
        elif order.concurrency and order.concurrency != worker.concurrency:
            why = "ticks are handled one by one"
        paused, pid = bool(worker.paused), os.getpid()
        return Answer(group=order.group, host=HOST, pid=pid, paused=paused, concurrency=worker.concurrency, why=why)

    def _orders(self, older: float = 0.0) -> list[Order]:
        """Those that hold, and were given so many seconds ago."""
        until = self.bus.clock.now() - older
        return [
            Order(group=group, paused=holds.paused, concurrency=holds.concurrency, by=holds.by, again=True)
            for group, holds in self.standing.items()
            if (holds.paused or holds.concurrency) and holds.at <= until
        ]

    async def _repeat(self) -> None:
        while True:
            with suppress(BusError):  # an hour later, then
                await self._say(*self._orders(older=DAY))
            await asyncio.sleep(OFTEN)
            await self._look()  # there may be orders that were not heard here

    async def _say(self, *what: Said, answers: str | None = None) -> None:
        now = self.bus.clock.now()
        if messages := [seal(draft(self.app, each, answers), now=now, source=self.app) for each in what]:
            await self.bus.publish(messages)
