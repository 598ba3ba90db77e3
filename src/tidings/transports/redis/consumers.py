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

from .entries import AT_ONCE, Copy, Deliveries, Gaps, Taken, Token, parts, taken, within
from .inspection import not_held, refusal
from .links import ANSWER
from .reading import BLOCK, SOON, Reading

if TYPE_CHECKING:
    from .transport import RedisTransport

FAST = 256  # messages asked for at once: by one who handles as many in a moment, so that a few more in hand hurt nobody
AHEAD = 512  # messages, the most read ahead: what is settled waits until the server has read, and handlers with it
GONE = 1.0  # seconds a connection must be gone until its process counts as dead

Other = tuple[int, Delivery, list[Any]]  # its number, and what is asked for it

LOST = spi.Session()
LOST.alive = False


class GroupConsumer(Reading):
    """A member of a group. What it may hand out waits in ``surplus`` when one call brought more than was asked for."""

    def __init__(self, transport: RedisTransport, subscription: spi.Subscription, id: str) -> None:
        super().__init__(transport, subscription.pattern)
        self.subscription, self.id, self.lease = subscription, id, transport.lease
        self.group = subscription.group or ""
        self.session, self.fence = spi.Session(), "0"
        self.held: Deliveries = {}
        self.copies: dict[Token, Copy] = {}
        self.suspects: set[Token] = set()
        self.doubtful: set[Token] = set()  # the answer to their settlement was lost
        self.surplus: deque[Delivery] = deque()
        self.gaps: dict[str, Gaps] = {}
        self.hot: list[bytes] = []  # streams that have more
        self.turn, self.room, self.closed = 0, 0, False  # room: for so many ``receive`` waits
        self.recalling: set[Token] | None = None  # what was settled while a lost answer is being looked for
        self.lost_answer = False
        self.ahead: asyncio.Task[None] | None = None  # reads what the next ``receive`` will hand out

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
            if self.ahead is not None:
                try:
                    await self.ahead
                finally:
                    self.ahead = None
            if self.surplus:
                return self._some(limit)
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

    def _some(self, limit: int) -> Sequence[Delivery]:
        """At most ``limit`` of what is there. While a backlog is worked off fast, the next are read meanwhile."""
        surplus = self.surplus
        if len(surplus) > limit:
            return [surplus.popleft() for _ in range(limit)]
        some = tuple(surplus)
        surplus.clear()
        if limit >= FAST and self.hot and not self.stale:
            self.ahead = self.transport.loop.create_task(self._read(min(limit, AHEAD)))
        return some

    async def refresh(self) -> None:
        names = await self.registered()
        if names is None:
            return
        mine = [group for group in map(msgspec.json.decode, self.records) if group["id"] == self.id]
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
            "STREAMS", *keys, *([">"] * len(keys)), read=self._deliveries,
        )  # fmt: skip
        rest = self.hot[limit:]
        self.hot = rest + [key for key, new, _ in found or () if len(new) >= count]
        for stream in found or ():
            await self._take(*stream)

    def _deliveries(self, streams: Iterable[tuple[bytes, Sequence[Any]]] | None) -> list[Taken]:
        """Of streams and their entries."""
        return [taken(key, self.topics[key], self.session, entries) for key, entries in streams or ()]

    async def _take(self, key: bytes, new: Deliveries, copies: dict[Token, Copy]) -> None:
        topic = self.topics[key]
        if gaps := self.gaps.get(topic):
            new = await self._unskipped(key, topic, new, gaps)
        self.held |= new
        self.copies.update((token, copy) for token, copy in copies.items() if token in new)
        self.surplus += new.values()

    async def _unskipped(self, key: bytes, topic: str, new: Deliveries, gaps: Gaps) -> Deliveries:
        """Without those that were added while the group did not read the topic: they are done."""
        skipped = {id for _, id in new if within(id, gaps)}
        if skipped:
            with suppress(errors.BusError):  # then they come again
                await self.transport.run("leave", self.id, topic, key, *skipped, wait=SOON)
        return {token: delivery for token, delivery in new.items() if token[1] not in skipped}

    async def sweep(self, every: float) -> None:
        """Take over from those who have died, while there is nothing else to do, or all is done fast."""
        transport, lease = self.transport, max(1, int(self.lease * 1000))
        room = 2 * AT_ONCE - len(self.held) if self.ahead is not None else 0 if self.surplus else self.room
        if room <= 0:
            return
        often, patience = max(1, int(every * 500)), min(self.lease, GONE)
        arguments = (self.id, self.name, lease, often, min(room, AT_ONCE), transport.run_id, patience)
        link = await transport.linked(transport.loop.time())  # now or not: never first thing after an outage
        found = await link.run("sweep", transport.bus, *arguments, *self.topics)
        for key, (id, entry), crashes in zip(*[iter(found)] * 3, strict=True):
            self._forget((key, id))
            self.doubtful.discard((key, id))
            await self._take(*self._deliveries([(key, [(id, entry)])])[0])
            if (delivery := self.held.get((key, id))) is not None:
                delivery.suspect = True
                delivery.crashes = int(crashes) if crashes else delivery.crashes
                self.suspects.add((key, id))
        if found:
            transport.notify(Event("recovered", len(found) // 3, self.group))
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
            await self._take(*self._deliveries([(key, [(id, entry) for id, entry in new if entry])])[0])

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
        self.copies.pop(token, None)
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
        failures, plain, others = list[Failure](), list[Token](), list[Other]()
        held, suspects = self.held, self.suspects
        outgoing = self.transport.outgoing()
        for index, settlement in enumerate(settlements):
            delivery = settlement.delivery
            token = delivery.token
            if held.get(token) is not delivery:
                failures.append(not_held(index, delivery, "unknown" if token in self.doubtful else "fenced"))
                self.doubtful.discard(token)
            elif settlement.action is spi.ACK and not settlement.outgoing and token not in suspects:
                plain.append(token)
            else:
                try:
                    asked = outgoing.settlement(settlement, self.group, self.copies.get(token), token in suspects)
                    others.append((index, delivery, asked))
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

    async def _commit(self, plain: list[Token], others: list[Other], outgoing: Any) -> Any:
        """One step on the server; None when what is held must be looked at first."""
        transport = self.transport
        acks = parts(plain)
        args = [len(acks), *chain.from_iterable(acks), *outgoing.head(), len(others)]
        for _, _, published in others:
            args += published
        head = (self.id, self.name, self.fence, transport.options.topics)
        try:
            answer = await transport.run("settle", *head, *args, wait=transport.publish_wait, again=False)
        except NotConnected as error:  # asked again it answers the same, but for what it had done
            self.doubtful.update(delivery.token for _, delivery, _ in others)
            raise transport.server.unavailable(error) from error
        return answer if answer[0] == b"done" else None

    def _committed(self, plain: list[Token], others: list[Other], answer: Any) -> list[Failure]:
        failures: list[Failure] = []
        _, fenced, rejected = answer
        refused = dict(zip(rejected[::2], rejected[1::2], strict=True))
        self._done(plain)
        for number, (index, delivery, _) in enumerate(others, 1):
            if number in refused:
                failures.append(Failure(index, "rejected", refusal(self.transport, refused[number].decode())))
            elif number in fenced and delivery.token not in self.doubtful:  # else nobody took it: we had settled it
                self._forget(delivery.token)
                failures.append(not_held(index, delivery))
            else:
                self._done((delivery.token,))
        return failures

    def _done(self, tokens: Sequence[Token]) -> None:
        pop = self.held.pop
        for token in tokens:
            pop(token, None)  # unless it was lost meanwhile
        if self.copies or self.suspects or self.doubtful:
            for token in tokens:
                self.doubtful.discard(token)
                self.copies.pop(token, None)
                self.suspects.discard(token)
        if self.recalling is not None:
            self.recalling.update(tokens)

    # -- leaving -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.stop()
        transport = self.transport
        try:
            async with asyncio.timeout(ANSWER if transport.up.is_set() else SOON):
                if self.ahead is not None:
                    await asyncio.gather(self.ahead, return_exceptions=True)
                self.surplus.clear()
                await self.settle([Settlement(delivery, spi.Release()) for delivery in self.held.values()])
                await transport.run("part", self.id, self.name, *self.topics)
        except (errors.BusError, TimeoutError) as error:  # what it holds comes back when its lease ends
            transport.notify(Event("lost", 0, str(error)))
        await self.leave()

    async def leave(self) -> None:
        if self.ahead is not None:
            self.ahead.cancel()
        await super().leave()
        self.reader.close()
