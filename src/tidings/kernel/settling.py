"""From what a handler did to committed settlements: fates are applied here, and settlements leave in batches.

They leave when ``UNFLUSHED`` are ready, 2 ms after the first, or when the worker is idle; never "when the received
batch is done": one slow handler would withhold everybody's. No more than that are on the way, those being committed
included: that bounds the duplicates after a crash. Few large commits cost less than many beside handlers: loop and
transport share one GIL.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from .clock import Clock
from .dead import dead_letter
from .errors import BusError, Skip, text_of, users
from .lanes import Lanes
from .outcome import Backoff, Breaker, Dead, Fate, Kind, Wait, before, classify, decide
from .topics import DEAD
from .transport import ACK, Consumer, Delivery, Failure, Release, Retry, Settlement

log, retried = logging.getLogger("tidings"), logging.getLogger("tidings.retried")

UNFLUSHED = 512  # settlements
TOLD = "%s failed, attempt %d of %d, and is tried again: %s: %s"
EARLY, AGAIN = 0.001, 0.5  # seconds: timers may be so early; between tries while the bus takes no settlements


class Policy(Struct, frozen=True, kw_only=True):
    """What a group does with failures. Handled ``once``, a message has no retries and no dead letter."""

    group: str  # of a live subscription: its handler's name
    ordered: bool = False
    once: bool = False
    backoff: Backoff = Backoff()
    most_waiting: int = 512  # in place


class Stats(Struct):
    """What has become of a subscription's deliveries since it started."""

    handled: int = 0
    failed: int = 0
    dead: int = 0
    expired: int = 0
    skipped: int = 0
    released: int = 0
    fenced: int = 0


class Settling:
    """One worker's fates and settlements. Successes are appended to ``ready`` directly; ``wake`` is called when a
    delivery may start again."""

    def __init__(
        self, consumer: Consumer, policy: Policy, breaker: Breaker | None, clock: Clock, wake: Callable[[], bool]
    ) -> None:
        self.consumer, self.policy, self.breaker, self.clock, self.wake = consumer, policy, breaker, clock, wake
        self.lanes, self.stats = Lanes(), Stats()
        self.ready: list[Settlement] = []
        self.committing: Sequence[Settlement] = ()
        # received and not yet committed; of those ready: no handler's success; known to the breaker
        self.held = self._other = self._counted = 0
        self.suspect: tuple[Delivery, asyncio.Event] | None = None  # running, and to be told when settled
        self.leaving = Counter[object]()  # keys of an ordered group that go back uncommitted, and (key, id)
        self.flushable, self.suspected = asyncio.Event(), asyncio.Event()

    @property
    def full(self) -> bool:
        return len(self.ready) + len(self.committing) >= UNFLUSHED

    def put(self, settlement: Settlement) -> None:
        """Add a settlement that is not a handler's success."""
        self.ready.append(settlement)
        self._other += 1
        self.flushable.set()
        if self.policy.ordered and settlement.action is not ACK:
            self.leaving.update(_going(settlement.delivery))

    def admit(self, batch: Sequence[Delivery]) -> None:
        """Take what was received. While one of an ordered key goes back uncommitted, only itself may come again."""
        self.held += len(batch)
        going, again = self.leaving, []
        for delivery in batch if going else ():
            key = delivery.message.key
            if key not in going or (key, delivery.message.id) in going:
                again.append(delivery)
            else:
                self.put(Settlement(delivery, Release()))
        self.lanes.add(again if going else batch)

    def give_back(self) -> None:
        """All that has not started: released, uncounted; what waits in place keeps its failures."""
        fresh, waiting = self.lanes.drain()
        for delivery in (*fresh, *waiting):
            self.put(given_back(delivery))
        self.stats.released += len(fresh)

    # -- fates

    def may_start(self, delivery: Delivery) -> bool:
        """Whether it is still ours, not expired and has attempts left; if not, its fate is applied."""
        if not delivery.session.alive:
            self.held -= 1
            self.stats.fenced += 1
            self._suspect_left(delivery)
            return False
        fate = before(delivery, self.policy.backoff, self.clock.now())
        if fate is None:
            return True
        self.stats.expired += fate == Dead("expired") or fate is ACK
        self.apply(delivery, fate, None)
        return False

    def failed(self, delivery: Delivery, error: BaseException) -> bool:
        """Decide after an exception; True when the delivery's lane may move on."""
        policy, breaker = self.policy, self.breaker
        failed = classify(error, policy.backoff) is Kind.FAILED
        self.stats.failed += failed
        broken = breaker is not None and breaker.open
        room = self.lanes.waiting < policy.most_waiting
        try:
            fate = decide(error, delivery, policy.backoff, broken=broken, room=room, now=self.clock.now())
        except Exception as junk:  # raise Retry("soon")
            fate, error = Dead("failed"), junk
        if failed and breaker is not None:
            if broken:
                fate = Release(breaker.pause)
            if self._count(breaker, 1):
                self._trip(breaker)
        if isinstance(fate, Wait | Retry) and retried.isEnabledFor(logging.INFO):
            told = policy.group, delivery.attempt, policy.backoff.attempts, type(error).__name__, text_of(error)
            retried.info(TOLD, *told, exc_info=users(error) if delivery.attempt == 1 else None)
        return self.apply(delivery, fate, users(error))

    def _count(self, breaker: Breaker, failed: int) -> bool:
        good = len(self.ready) - self._other - self._counted
        self._counted += good
        return breaker.record(good, failed, self.clock.monotonic())

    def apply(self, delivery: Delivery, fate: Fate, error: BaseException | None, *, lane: bool = True) -> bool:
        """Carry out a fate; True when the delivery's ``lane``, if it still has one, may move on."""
        final = isinstance(fate, Dead) and (delivery.message.address or "").startswith(DEAD)
        if fate is not ACK and (self.policy.once or final):  # a dead letter that fails again stays where it is
            log.warning("%s failed, and nothing is tried again", self.policy.group, exc_info=error)
            fate = ACK
        if isinstance(fate, Wait):
            delivery.failures = fate.failures
            self.lanes.wait(delivery, self.clock.monotonic() + fate.delay)
            asyncio.get_running_loop().call_later(fate.delay, self._resume)
            return False
        if isinstance(fate, Dead):
            failures = delivery.failures + (fate.reason == Kind.FAILED.value and error is not None)
            letter = dead_letter(delivery, self.policy.group, fate.reason, error, self.clock.now(), failures)
            told = (self.policy.group, fate.reason, letter.id, text_of(error) if error else "")
            log.warning("dead letter of %s: %s, id %s: %s", *told)
            self.stats.dead += 1
            self.put(Settlement(delivery, ACK, (letter,)))
            return True
        self.put(Settlement(delivery, fate))
        if fate is ACK:
            self.stats.skipped += isinstance(error, Skip)
            return True
        self.stats.released += isinstance(fate, Release)
        if not self.policy.ordered or not lane:
            return True
        for following in self.lanes.hold(delivery):  # in one settle: only the key's lowest may run until it succeeds
            self.put(Settlement(following, Release()))
        return False

    def _resume(self) -> None:
        self.lanes.resume(self.clock.monotonic() + EARLY)
        self.wake()

    @property
    def tripped(self) -> bool:
        """The breaker is open and no probe is due."""
        return self.breaker is not None and self.breaker.wait(self.clock.monotonic()) > 0

    def _trip(self, breaker: Breaker) -> None:
        """Most of what is handled fails: give back what has not started; one may start when the pause is over."""
        wait = breaker.wait(self.clock.monotonic())
        log.warning("breaker of %s is open: most of its messages fail; a probe in %.1f s", self.policy.group, wait)
        self.give_back()
        asyncio.get_running_loop().call_later(wait + EARLY, self.wake)
        self.wake()

    # -- committing

    async def flushing(self) -> None:
        """Commit all that is ready whenever ``flushable`` is set, and what becomes ready meanwhile; for ever."""
        while True:
            await self.flushable.wait()
            self.flushable.clear()
            while self.ready:
                if self.breaker is not None:
                    self._count(self.breaker, 0)
                batch, good = self.ready[:], len(self.ready) - self._other
                self.ready.clear()
                self._other = self._counted = 0
                self.committing = batch
                self.wake()
                failures = await self._settle(batch)
                self.committing = ()
                self._committed(batch, failures, good)

    async def _settle(self, batch: Sequence[Settlement]) -> list[Failure]:
        """Settle what is still ours, trying again for as long as the bus cannot; what it chokes on fails alone."""
        while True:
            alive = [index for index, settlement in enumerate(batch) if settlement.delivery.session.alive]
            lost = set(range(len(batch))).difference(alive) if len(alive) < len(batch) else ()
            fenced = [Failure(index, "fenced", BusError("the session was lost")) for index in lost]
            try:
                failed = await self.consumer.settle([batch[i] for i in alive] if lost else batch) if alive else ()
                return [*fenced, *(Failure(alive[f.index], f.kind, f.error) for f in failed)]
            except BusError as error:
                log.warning("settling %d deliveries failed, trying again: %s", len(alive), error)
                await asyncio.sleep(AGAIN)
            except Exception as error:
                if len(batch) == 1:
                    return [Failure(0, "rejected", error)]
                each = [(index, await self._settle((settlement,))) for index, settlement in enumerate(batch)]
                return [Failure(index, f.kind, f.error) for index, failed in each for f in failed]

    def _committed(self, batch: Sequence[Settlement], failures: Sequence[Failure], good: int) -> None:
        self.held -= len(batch)
        self.stats.handled += good
        for failure in failures:
            self._unsettled(batch[failure.index], failure)
        for settlement in batch if self.suspect is not None or self.leaving else ():
            self._suspect_left(settlement.delivery)
            if settlement.action is not ACK:
                self.leaving -= Counter(_going(settlement.delivery))
        self.wake()

    def _suspect_left(self, delivery: Delivery) -> None:
        if self.suspect is not None and self.suspect[0] is delivery:
            self.suspect[1].set()
            self.suspect = None

    def _unsettled(self, settlement: Settlement, failure: Failure) -> None:
        """A rejected output fails its own input; an unknown result releases it; a fenced one is somebody else's."""
        delivery = settlement.delivery
        letter = any(message.header("tdgreason") for message in settlement.outgoing)
        self.stats.handled -= settlement.action is ACK and not letter
        if failure.kind == "fenced":
            self.stats.fenced += 1
            return
        self.held += 1
        if failure.kind == "unknown":
            self.put(Settlement(delivery, Release()))
        elif letter:
            log.error("a dead letter of %s was refused: %s", self.policy.group, failure.error)
            self.put(Settlement(delivery, Release(60.0)))
        else:  # its lane has moved on
            self.stats.failed += 1
            backoff, now = self.policy.backoff, self.clock.now()
            fate = decide(failure.error, delivery, backoff, broken=False, room=False, now=now)
            self.apply(delivery, fate, failure.error, lane=False)


def given_back(delivery: Delivery) -> Settlement:
    """Uncounted; what failed in place keeps its failures."""
    return Settlement(delivery, Retry(0.0, delivery.failures, "given back") if delivery.failures else Release())


def _going(delivery: Delivery) -> tuple[object, ...]:
    return (key, (key, delivery.message.id)) if (key := delivery.message.key) is not None else ()
