"""A member of a group: what it pulled and holds, its leases, and how it settles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tidings.kernel import errors
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import ACK, Delivery, Event, Failure, Release, Retry, Settlement
from tidings.transports._points import passed
from tidings.transports._wire import attributes, copied

from .connection import AGAIN, ANSWER, Pull, status
from .frames import LOST, Bounds, Claim, Frame, Letter, Refused, delivered, fenced, forgotten, head, place
from .stream import MARK

if TYPE_CHECKING:
    from .transport import NATSTransport

EXPIRES = 10.0  # seconds: of a waiting pull
LIES = 0.375  # of a lease: what has arrived and waits longer for a handler is given back
ACK_WAIT = 1.25  # of a lease: what an acknowledgement may take to arrive
FORGETS = 3.0  # seconds: what a server delivered longer before it was killed it has written down


class GroupConsumer:
    """A member of a group."""

    def __init__(self, transport: NATSTransport, group: str) -> None:
        self.transport, self.group, self.clock = transport, group, transport.clock
        self.lease, self.loop = transport.lease, transport.loop
        self.stopped = self.closed = False
        self.changed = self.known = 0  # how often its consumers have changed, and how much of that is known here
        self.claims: dict[Claim, None] = {}
        root = f"{transport.api}.CONSUMER.MSG.NEXT.{transport.name}."
        self.main, self.again = (Pull(transport, root, self.wake) for _ in range(2))
        self.future: asyncio.Future[None] | None = None
        self.leaving: asyncio.Task[Any] | None = None
        self.born: dict[str, str] = {}  # when each consumer was made
        self.older: dict[str, float] = {}  # consumers still to be drained, and when to look at them again
        self.server: str = transport.server  # which one has said what it knows of our deliveries
        self.cut: float | None = None  # when the connection was lost, until that is known again
        transport.wakers[self] = self._anew

    # -- which consumers

    async def find(self, recent: float = 0.0) -> None:
        """The group's consumers, as they are now."""
        transport, changed = self.transport, self.changed
        each = (await transport.generations(recent)).get(self.group)
        names = [each[-1].name, each[-1].again] if each else [self.main.name, self.again.name]
        infos = [await transport.ask("consumer_info", transport.name, name, missing=None) for name in names if name]
        if not infos or None in infos:
            why, mend = "somebody dropped it", "start the app anew"
            raise errors.BusError(f"the group {self.group!r} is gone", why=why, mend=mend)
        if not each:  # a list is not complete while a cluster chooses leaders
            await asyncio.sleep(AGAIN)
            return
        self.main.name, self.again.name = names
        self.lease = min(info.config.ack_wait or 30.0 for info in infos) / ACK_WAIT
        self.bounds = {one.name: Bounds(one.pattern, after.start - 1) for one, after in pairwise(each)}
        self.bounds |= {names[0]: Bounds(each[-1].pattern), self.again.name: Bounds(GROUP + ">")}
        self.older = {one.name: self.older.get(one.name, 0.0) for one in each[:-1]}
        self.born |= {info.name: str(info.created.timestamp()) for info in [*(one.info for one in each), *infos]}
        for pull in (self.main, self.again):
            if pull.ear.sub is None:
                await transport.listen(pull.ear)
        self.known = changed

    # -- receiving

    async def receive(self, limit: int) -> Sequence[Delivery]:
        passed("receive.before")
        while not self.stopped:
            if {self.main.status, self.again.status} & {"409", "503"}:  # a new leader, or somebody deleted it
                self.main.status = self.again.status = ""
                self.changed += 1
                await asyncio.sleep(AGAIN)
            if self.changed > self.known:
                await self.find()
            if not self.transport.ready.is_set():
                await self._sleep(ANSWER)
                continue
            if self.cut is not None and not await self.check():  # before it delivers anything else to us
                await asyncio.sleep(AGAIN)
                continue
            await self._pull(limit)
            if taken := await self._take(limit):
                passed("receive.after")
                return taken
        return ()

    async def _pull(self, limit: int) -> None:
        """Until something is there: first what is at the private address, which is asked all the time."""
        main, again = self.main, self.again
        if again.more and not again.arrived:
            await self._now(again, again.name, limit)
        if not again.open and not again.arrived:
            await again.ask(again.name, 1, EXPIRES)
        for name, when in tuple(self.older.items()):
            if when <= self.clock.monotonic() and not main.arrived and not again.arrived:
                await self._drain_older(name, limit)
        if main.more and not main.arrived and limit > len(again.arrived):
            await self._now(main, main.name, limit - len(again.arrived))
        if not main.arrived and not again.arrived and not main.more:
            if not main.open:
                await main.ask(main.name, 1, AGAIN if self.older else EXPIRES)
            if main.open and again.open and self.changed == self.known:
                await self._sleep(min(main.until, again.until) - self.loop.time())

    async def _now(self, pull: Pull, name: str, limit: int) -> None:
        """What is there."""
        await pull.ask(name, limit)
        while pull.open and not self.stopped:
            await self._sleep(ANSWER)
        if len(pull.arrived) < limit and name == pull.name:
            pull.more = False

    async def _drain_older(self, name: str, limit: int) -> None:
        await self._now(self.main, name, limit)
        if self.main.arrived or self.stopped:
            return
        self.older[name] = self.clock.monotonic() + AGAIN
        info = await self.transport.ask("consumer_info", self.transport.name, name, missing=None)
        if info is None or (not info.num_pending and not info.num_ack_pending):
            await self.transport.ask("delete_consumer", self.transport.name, name, missing=None)
            self.older.pop(name, None)

    async def _sleep(self, seconds: float) -> None:
        """Until a pull has ended, the connection came or went, or too much time has passed."""
        if self.stopped:
            return
        self.future = future = self.loop.create_future()
        timer = self.loop.call_later(seconds, self.wake)
        await future
        timer.cancel()

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def _anew(self) -> None:
        """The connection came or went: nothing that was asked will be answered."""
        self.cut = self.cut or (None if self.transport.ready.is_set() else self.clock.monotonic())
        self.main.left = self.again.left = 0
        self.wake()

    async def _take(self, limit: int) -> list[Delivery]:
        """What has arrived, as deliveries."""
        since = min((pull.since for pull in (self.again, self.main) if pull.arrived), default=0.0)
        came = self.again.take(limit)
        came += self.main.take(limit - len(came))
        claim = Claim(self.clock.monotonic(), since + self.lease)
        taken: list[Delivery] = []
        unseen: list[str] = []
        for one in came:
            delivery = delivered(one, claim, self.transport.prefix, self.bounds)
            if delivery is None:
                unseen.append(one.reply.decode())
            else:
                taken.append(delivery)
        if unseen:
            await self.transport.write(b"".join(Frame(reply, b"", b"").to("") for reply in unseen))
        if claim.deadline <= claim.taken:
            return []  # it lay here for so long that it is somebody else's by now
        if suspects := [delivery for delivery in taken if delivery.suspect]:
            await self._count_crashes(suspects)
        claim.todo = {delivery.token: delivery for delivery in taken}
        if taken:
            self.claims[claim] = None
        return taken

    async def _count_crashes(self, suspects: Sequence[Delivery]) -> None:
        """What a dead holder had marked has crashed once more."""
        frames = [Frame(f"{self.transport.direct}.{self._mark(s)}", b"", b"") for s in suspects]
        for delivery, answer in zip(suspects, await self.transport.exchange(frames), strict=True):
            if answer is not None and answer.data.isdigit():
                delivery.crashes = int(answer.data)

    def _mark(self, delivery: Delivery) -> str:
        return "{}{}{}.{}".format(self.transport.prefix, MARK, *place(delivery.token))

    def _position(self, delivery: Delivery) -> str:
        """What no other group has: not one that was dropped and had the same name."""
        name, position, _ = place(delivery.token)
        return f"{name}.{position}.{self.born.get(name, '')}"

    # -- leases

    def expire(self, now: float) -> None:
        for claim in tuple(self.claims):
            claim.expire(now)
            self._tidy(claim)
        if any(pull.arrived and pull.since + LIES * self.lease <= now for pull in (self.main, self.again)):
            self.transport.run(self._give_back())

    async def check(self) -> bool:
        """Ask what the server knows of our deliveries: what it may have forgotten, killed, is anybody's and never
        confirmed. False: it has not told.
        """
        self.changed += 1  # it may have been told so while it could not hear
        cut, server = self.cut, self.transport.server
        since = (cut or self.clock.monotonic()) - FORGETS
        old = {token: claim.taken > since for claim in self.claims for token in claim.todo}
        old |= {came.reply.decode(): True for pull in (self.main, self.again) for came in pull.arrived}
        root = f"{self.transport.api}.CONSUMER.INFO.{self.transport.name}."
        answers = await self.transport.exchange([Frame(root + name, b"", b"") for name in self.bounds])
        infos = [json.loads(answer.data) for answer in answers if answer and answer.data]
        told = {info["name"]: info["delivered"] for info in infos if "delivered" in info}
        lost = {token for token, recent in old.items() if forgotten(token, told, server != self.server, recent)}
        for pull in (self.main, self.again):
            pull.arrived = [came for came in pull.arrived if came.reply.decode() not in lost]
        for claim in tuple(self.claims):
            claim.lose(lost & claim.todo.keys())
            self._tidy(claim)
        if len(told) == len(answers) and (cut, server) == (self.cut, self.transport.server):
            self.cut, self.server = None, server
        return self.cut is None

    def _tidy(self, claim: Claim) -> None:
        if not claim.todo:
            claim.alive = False
            self.claims.pop(claim, None)

    def _held(self, delivery: Delivery, now: float) -> Claim | None:
        claim = delivery.session
        if not isinstance(claim, Claim) or delivery.token not in claim.todo:
            return None
        return claim if claim.end(delivery.token) > now else None

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        now = self.clock.monotonic()
        held = [delivery for delivery in deliveries if self._held(delivery, now)]
        if held and self.cut is None and await self._tell(held, "+WPI"):
            for delivery in held:
                if claim := self._held(delivery, self.clock.monotonic()):
                    claim.renewed[delivery.token] = now + self.lease

    async def _tell(self, held: Sequence[Delivery], what: str) -> bool:
        """Say it of each; whether the server has confirmed the last of each consumer, and so all before it."""
        last = {d.token.rsplit(".", 5)[0]: d.token for d in held}
        confirmed = frozenset(last.values())
        others = "".join([f"PUB {d.token} {len(what)}\r\n{what}\r\n" for d in held if d.token not in confirmed])
        frames = [Frame(name, b"", what.encode()) for name in confirmed]
        answers = await self.transport.exchange(frames, others.encode())  # 503: a cluster chooses a leader
        return all(a is not None and not isinstance(a, Refused) and status(a) != "503" for a in answers)

    async def mark(self, delivery: Delivery) -> bool:
        claim = self._held(delivery, self.clock.monotonic())
        if claim is None:
            return False
        key = {"Nats-Msg-Id": f"{delivery.token}/mark/{self._position(delivery)}"}
        frame = Frame(self._mark(delivery), head({}, "", None, key), b"%d" % (delivery.crashes + 1))
        if failed := await self.transport.store([frame]):
            raise failed[0][1]
        claim.marked.add(delivery.token)
        return True

    # -- settling

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        passed("settle.before")
        now, failed = self.clock.monotonic(), dict[int, Failure]()
        letters: list[Letter] = []
        for index, settlement in enumerate(settlements):
            if self._held(settlement.delivery, now) is None:
                failed[index] = fenced(settlement.delivery, index)
            elif settlement.outgoing or settlement.action is not ACK:
                letters += self._letters(index, settlement)
        if letters:
            failed |= await self.transport.send(letters)
        passed("settle.between")
        done = {index: s.delivery for index, s in enumerate(settlements) if index not in failed}
        await self._acknowledge(list(done.values()))
        for index, delivery in done.items():
            claim: Any = delivery.session
            if claim is LOST or claim.todo.pop(delivery.token, None) is None:  # its lease ended before the answer came
                failed[index] = Failure(index, "unknown", errors.BusUnavailable("NATS has not confirmed it"))
            elif not claim.todo:
                self._tidy(claim)
        if late := sum(failure.kind == "fenced" for failure in failed.values()):
            self.transport.notify(Event("fenced", late, self.group))
        passed("settle.after")
        return sorted(failed.values(), key=lambda failure: failure.index) if failed else ()

    def _letters(self, index: int, settlement: Settlement) -> list[Letter]:
        """A settlement's outputs, and the copy that goes back."""
        delivery, action, position = settlement.delivery, settlement.action, self._position(settlement.delivery)
        letters = []
        for message in settlement.outgoing:
            to = message.address or message.topic
            kind = "dead" if to.startswith(DEAD) else "pub"
            key = f"{message.id}/{kind}/{to}/{position if kind == 'dead' else ''}"
            letters.append(Letter(index, message, to, attributes(message), key, message.deliver_at))
        if isinstance(action, Release | Retry):
            claim: Any = delivery.session
            failures = action.failures if isinstance(action, Retry) else claim.failures.get(delivery.token, 0)
            told, now = copied(delivery.message, failures, delivery.crashes), self.clock.now()
            due = now + action.delay if action.delay > 0 else None
            key = f"{delivery.message.id}/retry/{position}"  # a stored message has at most one copy
            letters.append(Letter(index, delivery.message, GROUP + self.group, told, key, due))
        return letters

    async def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Until the server has confirmed it, or the leases have ended."""
        while deliveries := [d for d in deliveries if self._held(d, self.clock.monotonic())]:
            if self.transport.ready.is_set() and self.cut is None and await self._tell(deliveries, ""):
                self._forget_marks(deliveries)
                return
            if self.transport.closing:
                break
            await self.transport.up(self.loop.time() + AGAIN)
            await self.check()
            await asyncio.sleep(AGAIN)
        for delivery in deliveries:
            if claim := self._held(delivery, -math.inf):
                del claim.todo[delivery.token]

    def _forget_marks(self, deliveries: Sequence[Delivery]) -> None:
        to = f"{self.transport.api}.STREAM.PURGE.{self.transport.name}"
        for delivery in deliveries:
            claim = delivery.session
            if isinstance(claim, Claim) and delivery.token in claim.marked:
                frame = Frame(to, b"", json.dumps({"filter": self._mark(delivery)}).encode())
                self.transport.run(self.transport.exchange([frame]))

    # -- the end

    async def _give_back(self) -> None:
        """What has arrived, and nobody here wants."""
        with contextlib.suppress(errors.BusUnavailable):  # then its lease ends
            while self.main.arrived or self.again.arrived:
                taken = await self._take(len(self.main.arrived) + len(self.again.arrived))
                await self.settle([Settlement(delivery, Release()) for delivery in taken])

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.wake()
            ears = (self.main.ear, self.again.ear)
            self.leaving = self.transport.run(asyncio.wait({self.transport.run(self.transport.hush(e)) for e in ears}))

    async def close(self) -> None:
        self.stop()
        if self.closed:
            return
        self.closed = True
        if self.leaving is not None:
            await asyncio.wait({self.leaving})
        with contextlib.suppress(errors.BusError):
            if self.transport.ready.is_set():
                await self._give_back()
                held = [delivery for claim in self.claims for delivery in claim.todo.values()]
                await self.settle([Settlement(delivery, Release()) for delivery in held])
        self.transport.consumers.pop(self, None)
        self.transport.wakers.pop(self, None)
