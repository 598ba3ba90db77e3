"""Key-ordered concurrency and waiting in place: a pure data structure.

Of each key at most one delivery is ready, running or waiting; the others queue in its lane, in arrival order. A
delivery without a key has no lane. The worker takes from ``ready``, and says ``done`` when the lane may move on.

A suspect (its last holder died) goes to ``suspects`` instead of ``ready``: those run one at a time per process, each
marked before (``marking``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, count, takewhile

from .transport import Delivery


class Lanes:
    """The deliveries in one worker's hands that have not started. No I/O, no clock."""

    __slots__ = ("_busy", "_order", "_waiting", "marking", "ready", "suspects")

    def __init__(self) -> None:
        self.ready: deque[Delivery] = deque()
        self.suspects: deque[Delivery] = deque()
        self.marking: Sequence[Delivery] = ()
        self._busy: dict[str, deque[Delivery] | None] = {}  # a key in someone's hands -> those behind it
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._order = count().__next__

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Take what was received, in order."""
        ready, busy = self.ready, self._busy
        for delivery in deliveries:
            key, delivery.arrived = delivery.message.key, self._order()
            if key is not None:
                if key in busy:
                    busy[key] = queue = busy[key] or deque()
                    queue.append(delivery)
                    continue
                busy[key] = None
            (self.suspects if delivery.suspect else ready).append(delivery)

    def done(self, delivery: Delivery) -> None:
        """The delivery has left its lane: the next of its key becomes ready."""
        key = delivery.message.key
        if key is not None:
            if queue := self._busy[key]:
                following = queue.popleft()
                (self.suspects if following.suspect else self.ready).append(following)
            else:
                del self._busy[key]

    def wait(self, delivery: Delivery, until: float) -> None:
        """Again at ``until``; its lane waits, the worker's slot does not."""
        heappush(self._waiting, (until, self._order(), delivery))

    def resume(self, now: float) -> None:
        """What waited until ``now`` becomes ready, before what arrived later."""
        while self._waiting and self._waiting[0][0] <= now:
            self.ready.appendleft(heappop(self._waiting)[2])

    @property
    def waiting(self) -> int:
        """How many wait in place."""
        return len(self._waiting)

    def take(self, limit: int, *, runs: bool) -> list[Delivery]:
        """Up to ``limit`` ready ones; with ``runs`` also those queued behind them in their lanes, which stay held: all
        in the order in which they came."""
        if not runs:
            return [self.ready.popleft() for _ in range(min(limit, len(self.ready)))]
        taken = sorted(self.runs(), key=lambda delivery: delivery.arrived)[:limit]
        heads = {id(delivery): delivery for delivery in self.ready}
        for delivery in taken:
            if heads.pop(id(delivery), None) is None:
                self._busy[delivery.message.key].popleft()  # type: ignore[index, union-attr]
        self.ready = deque(heads.values())
        return taken

    def runs(self) -> list[Delivery]:
        """What is ready, and what may run with it of the same keys."""
        found = list(self.ready)
        for head in self.ready:
            if queue := self._busy.get(head.message.key):  # type: ignore[arg-type]
                found += takewhile(lambda delivery: not delivery.suspect, queue)
        return found

    def hold(self, delivery: Delivery) -> list[Delivery]:
        """Empty the lane of a delivery that goes back to an ordered group: those behind it must go back too."""
        return list(self._busy.pop(key, None) or ()) if (key := delivery.message.key) is not None else []

    def requeue(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Put back what was taken and has not run, before what came later; returns those whose lane is gone."""
        gone = []
        for delivery in reversed(deliveries):
            key = delivery.message.key
            if key is None:
                self.ready.appendleft(delivery)
            elif key in self._busy:
                self._busy[key] = deque((delivery, *(self._busy[key] or ())))
            else:
                gone.append(delivery)
        return gone

    def drain(self) -> tuple[list[Delivery], list[Delivery]]:
        """Empty all but ``marking``: (never started, waiting in place). Lanes of those still running are kept."""
        waiting = [delivery for _, _, delivery in self._waiting]
        self._waiting.clear()
        fresh = [delivery for delivery in self if delivery not in self.marking]
        for delivery in chain(self.ready, self.suspects, waiting):
            if delivery.message.key is not None:
                self._busy.pop(delivery.message.key, None)
        self._busy = dict.fromkeys(self._busy)
        self.ready.clear()
        self.suspects.clear()
        return fresh, waiting

    def __iter__(self) -> Iterator[Delivery]:
        """Everything in hand that has not started."""
        queued = chain.from_iterable(queue or () for queue in self._busy.values())
        return chain(self.ready, self.suspects, self.marking, queued, (last for _, _, last in self._waiting))
