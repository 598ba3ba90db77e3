"""A member of a group: it reads by a blocking call on a connection of its own, and settles by script.

What was read is ``held`` until it is settled or lost. ``fence`` is a number that changes on the server when somebody
takes anything from this member; while it is known, all that is held is ours, and acknowledging needs no further look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
from redis.exceptions import ConnectionError as NotConnected

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.topics import GROUP
from tidings.kernel.transport import Delivery, Event, Failure, Settlement
from tidings.transports._matcher import expression
from tidings.transports._points import passed
from tidings.transports._wire import copied

from .entries import AT_ONCE, Token, fields, message, parts, within
from .inspection import refusal
from .links import ANSWER
from .reading import BLOCK, SOON, Reading

if TYPE_CHECKING:
    from .transport import RedisTransport

GONE = 1.0  # seconds a connection must be gone until its process counts as dead

LOST = spi.Session()
LOST.alive = False


class GroupConsumer(Reading):
    """A member of a group. What it may hand out waits in ``surplus`` when one call brought more than was asked for."""

    def __init__(self, transport: RedisTransport, subscription: spi.Subscription, id: str) -> None:
        super().__init__(transport, subscription.pattern)
        self.subscription, self.id, self.lease = subscription, id, transport.lease
        self.group = subscription.group or ""
        self.session, self.fence = spi.Session(), "0"
        self.held: dict[Token, Delivery] = {}
        self.stored: dict[Token, int] = {}  # failures, as stored
        self.suspects: set[Token] = set()
        self.surplus: deque[Delivery] = deque()
        self.gaps: dict[str, list[tuple[str, str]]] = {}
        self.hot: list[bytes] = []  # streams that have more
        self.turn, self.room, self.closed = 0, 0, False  # room: for so many ``receive`` waits
        self.recalling: set[Token] | None = (
            None  # what was settled while it is being found out what a lost answer brought
        )
        self.lost_answer = False

    async def enter(self) -> None:
        bus = self.transport.bus
        self.present = (f"{bus}members:{self.id}", f"{bus}listens:{self.pattern}")
        await self.transport.channels.add(*self.present)
        await self.refresh()

    def reconnected(self) -> None:
        """Renew all that is held, before somebody takes it for left behind."""
        super().reconnected()
        self.transport.spawn(self.extend(tuple(self.held.values())))

    def told(self, what: str, about: str, data: bytes) -> None:
        super().told(what, about, data)
        if what == "group" and about == self.id:
            self.changed()
        elif what == "lost" and about == self.name:
            self.transport.spawn(self._audit())

    # -- receiving -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not self.stopped:
            if self.surplus:
                return [self.surplus.popleft() for _ in range(min(limit, len(self.surplus)))]
            if self.stale:
                await self.refresh()
            if self.lost_answer:
                await self._recall()
            elif self.topics and not self.stale:
                self.room = limit
                await self._read(limit)
                if self.hot and 0 < len(self.surplus) < limit:
                    await self._read(limit - len(self.surplus))
                self.room = 0
            passed("receive.after")
        return ()

    async def refresh(self) -> None:
        names = await self.registered()
        if names is None:
            return
        groups = self.records
        mine = [group for group in map(msgspec.json.decode, groups) if group["id"] == self.id]
        if not mine:
            await self.repair()
            return
        (known,) = mine
        self.gaps = {topic: [tuple(gap) for gap in gaps] for topic, gaps in (known.get("gaps") or {}).items()}
        self.pattern, private = known["pattern"], {GROUP + name for name in known["names"]}
        match = expression(self.pattern).fullmatch
        wanted = sorted(name for name in names if match(name) or name in private or name in self.gaps)
        self.topics = {self.transport.key(topic).encode(): topic for topic in wanted}
        self.hot = [key for key in self.hot if key in self.topics]

    async def repair(self) -> None:
        """A stream or all was deleted underneath: be there again, from the beginning of what comes."""
        self.stale = True
        with suppress(errors.BusUnavailable):
            self.id = await self.transport.register(self.subscription, "0", SOON)

    def in_doubt(self) -> None:
        self.lost_answer = True

    async def _read(self, limit: int) -> None:
        self.turn += 1
        hot = self.hot[:limit] if self.turn % 8 else []
        keys = hot or list(self.topics)
        count = max(1, limit // len(keys))
        wait = 0.0 if hot else BLOCK
        block = ("BLOCK", int(wait * 1000)) if wait else ()
        found = await self.blocking(
            wait, "XREADGROUP", "GROUP", self.id, self.name, "COUNT", count, *block,
            "STREAMS", *keys, *([">"] * len(keys)),
        )  # fmt: skip
        rest = self.hot[limit:]
        self.hot = rest + [key for key, entries in found or () if len(entries) >= count]
        for key, entries in found or ():
            await self._take(key, entries)

    async def _take(self, key: bytes, entries: Iterable[Any]) -> None:
        topic, session, held, add = self.topics[key], self.session, self.held, self.surplus.append
        gaps = self.gaps.get(topic)
        skipped: list[bytes] = []
        for id, entry in entries:
            if gaps and within(id, gaps):
                skipped.append(id)
                continue
            found, failures, crashes = message(topic, id, entry)
            token = (key, id)
            held[token] = delivery = Delivery(found, session, token, failures, crashes)
            if failures:
                self.stored[token] = failures
            add(delivery)
        if skipped:
            with suppress(errors.BusError):  # then they come again
                await self.transport.run("leave", self.id, topic, key, *skipped, wait=SOON)

    async def sweep(self, every: float) -> None:
        """Take over from those who have died, while there is nothing else to do."""
        transport, lease = self.transport, max(1, int(self.lease * 1000))
        if not self.room or self.surplus:
            return
        often, patience = max(1, int(every * 500)), min(self.lease, GONE)
        arguments = (self.id, self.name, lease, often, min(self.room, AT_ONCE), transport.run_id, patience)
        link = await transport.linked(transport.loop.time())  # now or not: never first thing after an outage
        taken = await link.run("sweep", transport.bus, *arguments, *self.topics)
        for key, (id, entry), crashes in zip(*[iter(taken)] * 3, strict=True):
            self._forget((key, id))
            await self._take(key, [(id, entry)])
            if (delivery := self.held.get((key, id))) is not None:
                delivery.suspect = True
                delivery.crashes = int(crashes) if crashes else delivery.crashes
                self.suspects.add((key, id))
        if taken:
            transport.notify(Event("recovered", len(taken) // 3, self.group))
            self.wake()

    async def _recall(self) -> None:
        """What a lost answer had brought is ours and unknown here."""
        self.recalling, keys = set(), list(self.topics)
        found = await self.blocking(
            0.0, "XREADGROUP", "GROUP", self.id, self.name, "STREAMS", *keys, *(["0"] * len(keys))
        )
        settled, self.recalling = self.recalling, None
        if found is None:
            return
        self.lost_answer = False
        for key, entries in found:
            new = [(id, entry) for id, entry in entries if (key, id) not in self.held and (key, id) not in settled]
            await self._take(key, [(id, entry) for id, entry in new if entry])

    # -- leases --------------------------------------------------------------------------------------------------

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        mine = [token for d in (*deliveries, *self.surplus) if self.held.get(token := d.token) is d]
        if not mine:
            return
        ids = chain.from_iterable(parts(mine))
        if await self.transport.run("extend", self.id, self.name, self.fence, *ids, wait=self.lease):
            await self._audit()
            await self.extend(deliveries)

    async def tend(self) -> None:
        """Renew what only waits here."""
        if self.surplus:
            await self.extend(())

    async def _audit(self) -> None:
        """Somebody took something: find out what."""
        held = chain.from_iterable(parts(self.held))
        fence, *lost = await self.transport.run("audit", self.id, self.name, *held)
        for key, id in zip(lost[::2], lost[1::2], strict=True):
            self._forget((key, id))
        self.fence = fence.decode()

    def _forget(self, token: Token) -> None:
        lost = self.held.pop(token, None)
        if lost is not None:
            lost.session = LOST
            if lost in self.surplus:
                self.surplus.remove(lost)
        self.stored.pop(token, None)
        self.suspects.discard(token)

    async def mark(self, delivery: Delivery) -> bool:
        token = delivery.token
        if self.held.get(token) is not delivery:
            return False
        key, id = token
        if await self.transport.run("mark", self.id, self.name, key, id, delivery.crashes):
            return True
        self._forget(token)
        return False

    # -- settling ------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        failures, plain, others, held = list[Failure](), list[Delivery](), list[Other](), self.held
        outgoing = self.transport.outgoing()
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            token = delivery.token
            if held.get(token) is not delivery:
                failures.append(_fenced(index, delivery))
            elif type(settlement.action) is spi.Ack and not settlement.outgoing and token not in self.suspects:
                plain.append(delivery)
            else:
                try:
                    others.append((index, delivery, self._messages(settlement, outgoing)))
                except errors.TooLarge as error:
                    failures.append(Failure(index, "rejected", error))
        if plain or others:
            passed("settle.before")
            answer = await self._commit(plain, others, outgoing)
            passed("settle.after")
            if answer is None:
                await self._audit()
                return await self.settle(settlements)
            failures += self._committed(plain, others, answer)
            self.transport.unrouted(outgoing)
        if fenced := sum(failure.kind == "fenced" for failure in failures):
            self.transport.notify(Event("fenced", fenced, self.group))
        return failures

    def _messages(self, settlement: Settlement, outgoing: Any) -> list[Any]:
        """What a settlement publishes, as arguments: its outputs, and the copy that comes back."""
        delivery, action = settlement.delivery, settlement.action
        args: list[Any] = []
        for each in settlement.outgoing:
            args += outgoing.add(each)
        count = len(settlement.outgoing)
        if not isinstance(action, spi.Ack):
            stored = self.stored.get(delivery.token, 0)
            failures = action.failures if isinstance(action, spi.Retry) else stored
            entry = fields(delivery.message, copied(delivery.message, failures, delivery.crashes))
            due = f"+{action.delay:.6f}" if action.delay > 0 else ""
            args += outgoing.place(GROUP + self.group, entry, due)
            count += 1
        key, id = delivery.token
        return [key, id, "1" if delivery.token in self.suspects else "", count, *args]

    async def _commit(self, plain: list[Delivery], others: list[Other], outgoing: Any) -> Any:
        """One step on the server; None when what is held must be looked at first."""
        transport = self.transport
        acks = parts([delivery.token for delivery in plain])
        args = [len(acks), *chain.from_iterable(acks), *outgoing.head(), len(others)]
        for _, _, messages in others:
            args += messages
        head = (self.id, self.name, self.fence, transport.options.topics)
        try:
            answer = await transport.run("settle", *head, *args, wait=transport.publish_wait, again=False)
        except NotConnected as error:  # asked again it answers the same, but for what it had done
            raise transport.server.unavailable(error) from error
        return answer if answer[0] == b"done" else None

    def _committed(self, plain: list[Delivery], others: list[Other], answer: Any) -> list[Failure]:
        failures: list[Failure] = []
        _, fenced, rejected = answer
        refused = dict(zip(rejected[::2], rejected[1::2], strict=True))
        self._done(plain)
        for number, (index, delivery, _) in enumerate(others, 1):
            if number in refused:
                failures.append(Failure(index, "rejected", refusal(self.transport, refused[number].decode())))
            elif number in fenced:
                self._forget(delivery.token)
                failures.append(_fenced(index, delivery))
            else:
                self._done((delivery,))
        return failures

    def _done(self, deliveries: Sequence[Delivery]) -> None:
        pop = self.held.pop
        for delivery in deliveries:
            pop(delivery.token, None)  # unless it was lost meanwhile
        tokens = (
            [delivery.token for delivery in deliveries]
            if self.stored or self.suspects or self.recalling is not None
            else ()
        )
        for token in tokens:
            self.stored.pop(token, None)
            self.suspects.discard(token)
        if self.recalling is not None:
            self.recalling.update(tokens)

    # -- leaving -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.stop()
        self.surplus.clear()
        transport = self.transport
        try:
            async with asyncio.timeout(ANSWER if transport.up.is_set() else SOON):
                await self.settle([Settlement(delivery, spi.Release()) for delivery in self.held.values()])
                await transport.run("part", self.id, self.name, *self.topics)
        except (errors.BusError, TimeoutError) as error:  # what it holds comes back when its lease ends
            transport.notify(Event("lost", 0, str(error)))
        await self.leave()

    async def leave(self) -> None:
        transport = self.transport
        if self in transport.consumers:
            transport.consumers.discard(self)
            await transport.channels.remove(*self.present)
        self.reader.close()


Other = tuple[int, Delivery, list[Any]]


def _fenced(index: int, delivery: Delivery) -> Failure:
    error = errors.BusError(f"{delivery.message.topic!r}: not held any more", why="its lease ended, or it was settled")
    return Failure(index, "fenced", error)
