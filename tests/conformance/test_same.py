"""Random sequences of SPI operations drive memory, the reference, and another transport; what is seen is the same.

Of unordered groups every delivery is compared; of ordered ones, which may hand out more or less of a key at a time,
each key's course: which message ran, in which order, with which counts.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.servers import server

from tidings.kernel.message import Message
from tidings.kernel.topics import DEAD, GROUP
from tidings.kernel.transport import Delivery, Release, Retry, Settlement, Subscription, Transport
from tidings.testing.conformance.bus import Rig, Tap
from tidings.testing.conformance.buses import BUSES, served

TOPICS = ("orders.placed", "orders.paid", "returns.placed", "returns")
PATTERNS = ("orders.*", "*.placed", "returns.>", ">", "orders.placed")
GROUPS = ("shop.a", "shop.b", "shop.c")
LENGTH = 25


class Side:
    """One transport and everything held from it."""

    def __init__(self, rig: Rig, transport: Transport) -> None:
        self.rig, self.transport = rig, transport
        self.taps: dict[str, Tap] = {}
        self.held: dict[str, dict[str, Delivery]] = defaultdict(dict)

    async def join(self, group: str, pattern: str, ordered: bool, start: float | None) -> None:
        subscription = Subscription(app="shop", pattern=pattern, group=group, ordered=ordered, start=start)
        self.taps[group] = Tap(await self.transport.subscribe(subscription), group, 1000)

    async def leave(self, group: str) -> None:
        self.held[group].clear()
        await self.taps.pop(group).close()

    async def take(self, group: str, count: int | None) -> list[tuple[Any, ...]]:
        """``count`` deliveries, or all that are there; as they can be compared."""
        tap, came = self.taps[group], list[Delivery]()
        while count is None:
            before = len(came)
            await tap._more(0.02)
            came += [tap.ready.popleft() for _ in range(len(tap.ready))]
            if len(came) == before:
                break
        if count is not None:
            came = await tap.take(count)
        self.held[group].update((d.message.id, d) for d in came)
        return sorted((d.message.id, d.message.destination, d.message.key, d.failures, d.crashes) for d in came)

    async def work(self, group: str, runs: int | None = None) -> list[tuple[Any, ...]]:
        """Take and settle, a key at a time, as the kernel does: each key's course.

        Until ``runs`` messages ran, or else until nothing more comes, which only memory tells at once.
        """
        course: dict[Any, list[tuple[str, int]]] = defaultdict(list)
        while sum(map(len, course.values())) < runs if runs is not None else await self.take(group, None):
            if runs is not None:
                await self.take(group, 1)
                await self.take(group, len(self.taps[group].ready))
            keys: dict[Any, list[Delivery]] = defaultdict(list)
            for delivery in sorted(self.held[group].values(), key=lambda delivery: delivery.message.id):
                keys[delivery.message.key or delivery.message.id].append(delivery)
            self.held[group].clear()
            for key, run in keys.items():
                assert not await self.taps[group].consumer.settle(self._fates(run, course[key]))
        return sorted(course.items())

    def _fates(self, run: list[Delivery], course: list[tuple[str, int]]) -> list[Settlement]:
        settlements = []
        for index, delivery in enumerate(run):
            course.append((delivery.message.id, delivery.failures))
            if delivery.failures < int(delivery.message.body) % 4 - 1:
                settlements.append(Settlement(delivery, Retry(0.0, delivery.failures + 1)))
                return settlements + [Settlement(later, Release()) for later in run[index + 1 :]]
            settlements.append(Settlement(delivery))
        return settlements

    async def settle(
        self, group: str, fates: dict[str, Any], outputs: dict[str, tuple[Message[Any], ...]]
    ) -> list[Any]:
        held = [self.held[group].pop(id) for id in fates]
        settlements = [Settlement(d, fates[d.message.id], outputs.get(d.message.id, ())) for d in held]
        failures = await self.taps[group].consumer.settle(settlements)
        return [(failure.index, failure.kind) for failure in failures]

    async def seen(self) -> list[Any]:
        transport: Any = self.transport
        groups = [(g.name, g.pattern, g.lag + g.parked, g.in_flight, g.members) for g in await transport.groups()]
        topics = [(topic.name, topic.messages) for topic in await transport.topics()]
        return [sorted(groups), sorted(topics), [s.message.id for s in await transport.peek(">", limit=1000)]]


class Play:
    """One random sequence on both sides."""

    def __init__(self, seed: int, rig: Rig, ours: Side, other: Side) -> None:
        self.random, self.rig, self.sides = Random(seed), rig, (ours, other)
        self.ordered = {group: self.random.random() < 0.3 for group in GROUPS}
        self.keys = [None, "k1", "k2", "k3"]
        self.extra = ("private", "seek")[seed % 2]  # whether a seek repeats private messages is left open
        self.count = 0
        self.log: list[str] = []

    async def both(self, what: str, *arguments: Any) -> None:
        self.log.append(f"{what}{arguments}"[:150])
        results = [await getattr(side, what)(*arguments) for side in self.sides]
        assert results[0] == results[1], "\n".join([*self.log, f"memory: {results[0]}", f"other:  {results[1]}"])

    def message(self, topic: str, **fields: Any) -> Message[Any]:
        self.count += 1
        key = fields.pop("key", self.random.choice(self.keys))
        return self.rig.message(topic, b"%d" % self.count, id=f"m{self.count:04d}", key=key, **fields)

    async def step(self) -> None:
        group = self.random.choice(GROUPS)
        if group not in self.sides[0].taps:
            start = self.random.choice((None, 0.0))
            await self.both("join", group, self.random.choice(PATTERNS), self.ordered[group], start)
            return
        steps = ["publish"] * 3 + ["take"] * 3 + ["settle"] * 4 + ["leave", self.extra]
        await getattr(self, self.random.choice(steps))(group)

    async def publish(self, group: str) -> None:
        batch = [self.message(self.random.choice(TOPICS)) for _ in range(self.random.randint(1, 8))]
        self.log.append(f"publish {[(m.id, m.topic, m.key) for m in batch]}")
        for side in self.sides:
            assert not await side.transport.publish(batch)

    async def private(self, group: str) -> None:
        sent = self.message("orders.placed", address=GROUP + group)
        self.log.append(f"private {sent.id} to {group}")
        for side in self.sides:
            assert not await side.transport.publish([sent])

    async def take(self, group: str) -> None:
        ours, other = self.sides
        if self.ordered[group]:
            worked = await ours.work(group)
            also = await other.work(group, sum(len(course) for _, course in worked))
            self.log.append(f"work {group}")
            assert worked == also, "\n".join([*self.log, f"memory: {worked}", f"other:  {also}"])
            return
        came = await ours.take(group, None)
        self.log.append(f"take {group}: {[line[0] for line in came]}")
        also = await other.take(group, len(came)) if came else []
        assert came == also, "\n".join([*self.log, f"memory: {came}", f"other:  {also}"])

    async def settle(self, group: str) -> None:
        held = self.sides[0].held[group]
        fates: dict[str, Any] = {}
        outputs: dict[str, tuple[Message[Any], ...]] = {}
        for id in self.random.sample(sorted(held), min(len(held), self.random.randint(1, 6))):
            fates[id] = self._fate(held[id])
        for id, fate in fates.items():
            if isinstance(fate, type(Settlement(held[id]).action)) and self.random.random() < 0.3:
                topic = self.random.choice(TOPICS)
                dead = self.random.random() < 0.3
                outputs[id] = (self.message(topic, address=DEAD + group if dead else None),)
        if fates:
            await self.both("settle", group, fates, outputs)

    def _fate(self, delivery: Delivery) -> Any:
        ack = Settlement(delivery).action
        return self.random.choice([ack, ack, Release(), Retry(0.0, delivery.failures + 1)])

    async def leave(self, group: str) -> None:
        await self.both("leave", group)

    async def seek(self, group: str) -> None:
        await self.both("leave", group)
        self.log.append(f"seek {group}")
        for side in self.sides:
            transport: Any = side.transport
            await transport.seek(group, 0.0)

    async def end(self) -> None:
        """Everything left is taken and settled; then nothing is left on either side."""
        for group in sorted(self.sides[0].taps):
            for _ in range(200):
                held = self.sides[0].held[group]
                if held:
                    ack = Settlement(next(iter(held.values()))).action
                    await self.both("settle", group, dict.fromkeys(sorted(held), ack), {})
                await self.take(group)
                if not self.sides[0].held[group]:
                    break
            await self.sides[1].taps[group].quiet(0.02)
        await self.both("seen")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])  # which claim all that memory does
@pytest.mark.parametrize("seed", range(30))
def test_same_outcome(seed: int, kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        rig = Rig(BUSES["memory"](tmp_path))
        ours = Side(rig, await rig.open())
        there = Rig(BUSES[kind](tmp_path) if kind in BUSES else served(server(kind).url))
        other = Side(there, await there.open())
        play = Play(seed, rig, ours, other)
        try:
            for _ in range(LENGTH):
                await play.step()
            await play.end()
        except AssertionError as error:
            raise AssertionError("\n".join([*play.log, str(error)])) from error
        finally:
            for side in play.sides:
                for tap in side.taps.values():
                    await tap.close()
            await rig.stack.aclose()
            await there.stack.aclose()

    asyncio.run(main())
