"""EIP: Control Bus. How an app works is changed by messages, while it runs, in all of its processes.

Every app obeys ``Order``: pause, resume, concurrency (``tidings.control``, ``tidings pause``). With a ``ControlBus`` it
also obeys ``Rate``, ``Level`` and ``Switch``. All are messages on ``_tidings.control.<app>``, and so are the answers:
that topic is the record, which ``audit`` reads. The latest command of a kind holds, also for processes that start later
where the bus can be looked into; one that still holds is said again every day, lest retention forget it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import replace

from tidings.app import App
from tidings.control import CONTROL, DAY, HOST, PAGE, Answer, Order, Question, remembers
from tidings.inject import Depends
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import BusError, Duration, InvalidOption, NoAnswerer, Unsupported, nearest
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import check_topic
from tidings.kernel.transport import Inspectable, Subscription
from tidings.middleware import instrument
from tidings.router import Router

from ._commands import Command, Done, Level, Rate, Switch, checked, draft, object_of, said
from ._pace import Pace
from ._pattern import describe

log = logging.getLogger("tidings")


class Entry(Struct, frozen=True):
    """A line of the record: when (Unix seconds), what was said, and to which command (its id) it is the answer."""

    at: float
    id: str
    said: Order | Rate | Level | Switch | Answer | Done
    answers: str | None = None


class ControlBus:
    """Lets an app that is not open yet obey ``Rate``, ``Level`` and ``Switch`` beside ``Order``, from its default bus.

    It costs what a middleware around each handler does.
    """

    def __init__(self, app: App) -> None:
        self.app, self.topic = app, CONTROL + app.name
        self.switches: dict[str, Callable[[bool], Any]] = {}
        self.holds: dict[str, tuple[Command, float, str]] = {}  # by what each is of: since when, why it is not obeyed
        self.levels: dict[str, int] = {}
        self.after = 0  # the position up to which the record was read
        self.paces = Pace()
        instrument(app, self.paces)
        self._register()

    def switch(self, name: str, turn: Callable[[bool], Any], /) -> None:
        """Call ``turn(on)`` in this process when ``Switch(name, on)`` is ordered. Raises ``InvalidOption``."""
        if name in self.switches:
            raise InvalidOption(f"there is a switch {name!r} already", mend="give each its own name")
        self.switches[name] = turn

    def _register(self) -> None:
        async def control(message: Message[Any], ready: None) -> list[Message[Any]]:
            return self._hear(message)

        async def opened() -> None:
            self.after = 0
            await self._look()

        async def record() -> list[Message[Any]]:
            await self._look()
            return self._standing(older=DAY)

        control.__annotations__["ready"] = Annotated[None, Depends(opened, scope="app")]
        router, group = Router(), f"{self.app.name}.control-bus"
        router.on("control", live=True)(describe(control, "control bus"))
        (heard,) = router.registrations  # `on` refuses reserved topics, which are for such as this
        self.app.add(replace(heard, template=self.topic, pattern=self.topic, group=group))
        self.app.every("1m", each=True, group=f"{group}-record")(describe(record, "control bus"))

    async def _look(self) -> None:
        """Obey what was said before, or was not heard; where the bus cannot show it, those that run say it again."""
        transport, latest = self.app.bus(), dict[str, tuple[Command, float]]()
        try:
            while remembers(transport) and isinstance(transport, Inspectable):
                page = await transport.peek(self.topic, self.after, PAGE)
                for stored in page:
                    self.after = stored.position
                    if isinstance(what := said(stored.message), Command):
                        latest[object_of(what)] = what, stored.message.time
                if len(page) < PAGE:
                    break
        except BusError as error:
            log.warning("what was ordered to %s cannot be read: %s", self.app.name, error)
        for what, at in latest.values():
            self._obey(what, at)

    def _hear(self, message: Message[Any]) -> list[Message[Any]]:
        what = said(message)
        if isinstance(what, Question):
            return self._standing()
        if not isinstance(what, Command):
            return []
        why = self._obey(what, message.time)
        done = Done(of=object_of(what), host=HOST, pid=os.getpid(), why=why)
        return [] if what.again else [draft(self.app.name, done, message.id)]

    def _standing(self, older: float = 0.0) -> list[Message[Any]]:
        """The commands that hold, to be said again, if they were given so many seconds ago."""
        until = current_clock().now() - older
        return [draft(self.app.name, replace(what, again=True)) for what, at, _ in self.holds.values() if at <= until]

    def _obey(self, what: Command, at: float) -> str:
        """Do as is said, unless something later holds or it is done already; why it cannot be done."""
        of = object_of(what)
        known, since, why = self.holds.get(of, (None, 0.0, ""))
        if at < since:
            return "a later one holds"
        done = known is not None and not why and replace(known, by="", again=False) == replace(what, by="", again=False)
        why = "" if done else self._done(what)
        self.holds[of] = what, at, why
        if why:
            log.warning("%s could not obey %r of %s: %s", self.app.name, of, what.by, why)
        elif not done:
            log.warning("%s obeys %s: %s", self.app.name, what.by, what)
        return why

    def _done(self, what: Command) -> str:
        match what:
            case Rate(group=group, per_second=rate):
                if group not in self.paces.known:
                    return f"it has no group {group!r} {nearest(group, self.paces.known)}".strip()
                self.paces.known[group].set(rate)
            case Level(logger=name, level=level):
                logger = logging.getLogger(name)
                before = self.levels.setdefault(name, logger.level)
                logger.setLevel(level or before)
            case Switch(name=name, on=on):
                if name not in self.switches:
                    return f"it has no switch {name!r} {nearest(name, self.switches)}".strip()
                try:
                    self.switches[name](on)
                except Exception as error:
                    return f"{type(error).__name__}: {error}"
        return ""


async def command(
    app: App, of: str, /, *commands: Order | Command, answers: int = 1, timeout: Duration = 3.0
) -> list[Answer | Done]:
    """Give commands to the processes of the app called ``of``, and wait until ``answers`` of them have answered each.

    ``app`` is open, on the bus that ``of`` has as its default bus. The commands are recorded whoever answers. Raises
    ``NoAnswerer`` when a command has no answer within ``timeout``; ``InvalidOption`` for one that means nothing.
    """
    drafts = [draft(check_topic(of), checked(each, f"{app.name}@{HOST}")) for each in commands]
    missing, came = {each.id: answers for each in drafts}, list[Answer | Done]()
    consumer = await app.bus().subscribe(Subscription(app=app.name, pattern=CONTROL + of))
    timer = asyncio.get_running_loop().call_later(seconds(timeout, "timeout"), consumer.stop)
    try:
        await app.publish_many(drafts)
        while any(left > 0 for left in missing.values()) and (batch := await consumer.receive(PAGE)):
            for message in (delivery.message for delivery in batch):
                if message.correlation_id in missing and isinstance(answer := said(message), Answer | Done):
                    missing[message.correlation_id] -= 1
                    came.append(answer)
    finally:
        timer.cancel()
        consumer.stop()
        await consumer.close()
    if answers in missing.values():
        raise NoAnswerer(f"no process of {of!r} has answered", why="it does not run, or has no ControlBus(app)")
    return came


async def audit(app: App, of: str, /) -> list[Entry]:
    """What was commanded to the app called ``of``, by whom, and what its processes answered, as far as retained.

    Raises ``Unsupported`` where the bus cannot be looked into.
    """
    transport, after, found = app.bus(), 0, list[Entry]()
    if not remembers(transport) or not isinstance(transport, Inspectable):
        raise Unsupported("this bus shows no record", mend="the log of each process has its own part")
    while page := await transport.peek(CONTROL + of, after, PAGE):
        after = page[-1].position
        for message in (stored.message for stored in page):
            what = said(message)
            if what is not None and not isinstance(what, Question):
                found.append(Entry(message.time, message.id, what, message.correlation_id))
    return found
