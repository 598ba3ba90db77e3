"""Several processes on one bus, and ``kill -9``: for transports whose ``Bus`` has a ``url``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tidings import App, Backoff, Topic
from tidings.kernel.message import Message
from tidings.kernel.topics import DEAD

from .bus import Rig, Tap, needs, scenario
from .ledger import Ledger
from .process import Body, Command, Spec, Told, line_of

placed = Topic("orders.placed", Body)


class Worker:
    """A worker process, and what it has told."""

    def __init__(self, process: asyncio.subprocess.Process, spec: Spec) -> None:
        self.process, self.spec = process, spec
        self.told: list[Told] = []
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.endswith(b"\n"):  # a killed process may leave half a line
                self.told.append(msgspec.json.decode(line, type=Told))

    def of(self, what: str) -> list[Told]:
        return [told for told in self.told if told.what == what]

    async def command(self, command: Command) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(command) + b"\n")
        await self.process.stdin.drain()

    @property
    def dead(self) -> bool:
        return self.reading.done()

    async def kill(self) -> None:
        """As the machine's owner would: no chance to say anything."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reading

    async def close(self) -> None:
        """Let it drain."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 20)
        finally:
            await self.kill()


async def worker(rig: Rig, **more: Any) -> Worker:
    """A new worker process, ready."""
    assert rig.bus.url is not None
    lease = more.pop("lease", rig.bus.orphaned)
    spec = Spec(url=rig.bus.url(lease), mutant=rig.bus.mutant, **more)
    code = "import sys; from tidings.testing.conformance.process import main; main(sys.argv[1])"
    command = [sys.executable, "-c", code, msgspec.json.encode(spec).decode()]
    pipe = asyncio.subprocess.PIPE
    found = Worker(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe), spec)
    rig.stack.push_async_callback(found.kill)
    await rig.until(lambda: bool(found.told) or found.dead, 30, "a worker process is ready")
    assert found.told, "the worker process could not start"
    return found


class Holder:
    """Someone else who holds deliveries and can be killed: a process, or a transport that plays one."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.worker: Worker | None = None
        self.tap: Tap | None = None
        self.crash: Callable[[], None] = lambda: None

    async def open(self, pattern: str, group: str) -> Holder:
        if self.rig.bus.crash is not None:
            transport, crash = await self.rig.open(), self.rig.bus.crash
            self.tap = await self.rig.tap(transport, pattern, group)
            self.crash = lambda: crash(transport)
        elif self.rig.bus.url is not None:
            self.worker = await worker(self.rig, role="hold", topic=pattern, group=group)
        else:
            raise AssertionError("crash_count is claimed, and Bus has neither crash nor url to prove it")
        return self

    async def take(self, count: int) -> dict[str, Told]:
        if self.tap is not None:
            self.held = {delivery.message.id: delivery for delivery in await self.tap.take(count)}
            return {id: line_of("took", delivery) for id, delivery in self.held.items()}
        assert self.worker is not None
        await self.worker.command(Command(take=count))
        came = self.worker
        await self.rig.until(lambda: len(came.of("took")) == count, 20, f"{count} deliveries in the other process")
        return {told.id: told for told in came.of("took")}

    async def mark(self, id: str) -> None:
        if self.tap is not None:
            assert await self.tap.consumer.mark(self.held[id])
            return
        assert self.worker is not None
        came = self.worker
        await came.command(Command(mark=id))
        await self.rig.until(lambda: bool(came.of("marked")), 20, "marked")
        assert came.of("marked")[0].yes

    async def kill(self) -> None:
        self.crash()
        if self.worker is not None:
            await self.worker.kill()


class Processes:
    """What must hold when whole processes come and go."""

    @scenario
    @needs("crash_count")
    async def test_crashes_are_counted_by_mark(self, rig: Rig) -> None:
        """Only what a dead process had marked has crashed; its neighbours are suspects, and not counted."""
        bus = await rig.open()
        sent = rig.messages(3)
        holder = await Holder(rig).open("orders.placed", "shop.bill")
        await rig.publish(bus, *sent)
        first = await holder.take(3)  # first deliveries: never marked
        assert not any(told.suspect or told.crashes for told in first.values())
        await holder.kill()
        crashes = dict.fromkeys(first, 0)
        for _ in range(2):
            holder = await Holder(rig).open("orders.placed", "shop.bill")
            ((id, told),) = (await holder.take(1)).items()  # some buses hand out one suspect at a time
            assert told.suspect
            assert told.crashes == crashes[id]
            await holder.mark(id)
            await holder.kill()
            crashes[id] += 1
        tap = await rig.tap(bus, "orders.placed", "shop.bill")
        for left in (2, 1, 0):
            (delivery,) = await tap.take(within=20)
            assert delivery.suspect
            assert delivery.crashes == crashes[delivery.message.id]
            if left:
                await tap.ack(delivery)
        assert await tap.consumer.mark(delivery)
        await tap.release(delivery)
        (again,) = await tap.take()
        assert (again.crashes, again.suspect) == (delivery.crashes, False), "a release forgets the mark, not the count"

    @scenario
    @needs("crash_count")
    async def test_app_dead_letters_what_crashed_too_often(self, rig: Rig) -> None:
        """Without running it again."""
        bus = await rig.open()
        for crashes in range(3):
            holder = await Holder(rig).open("orders.placed", "shop.bill")
            if not crashes:
                await rig.publish(bus, sent := _message(rig, Body(1)))
                await holder.take(1)
                await holder.kill()
                holder = await Holder(rig).open("orders.placed", "shop.bill")
            await holder.take(1)
            await holder.mark(sent.id)
            await holder.kill()
        app, ran = rig.app(backoff=Backoff(attempts=3)), list[int]()
        letters = await rig.tap(bus, DEAD + "shop.bill", "ops.letters")

        @app.on(placed)
        async def bill(body: Body) -> None:
            ran.append(body.n)

        async with app:
            (letter,) = await letters.take()
            told = [letter.message.header(name) for name in ("tdgreason", "tdgcrashes", "tdgfailures")]
            assert told == ["crashed", "3", "0"]
            assert not ran
            await app.publish(placed, Body(2))
            await rig.until(lambda: ran == [2])

    @scenario
    async def test_kill_9_of_one_of_two_processes(self, rig: Rig) -> None:
        """Everything accepted is handled; what is repeated is bounded; attempts are not counted."""
        if rig.bus.url is None:
            pytest.skip("a bus of one process: Bus has no url")
        bus, ledger = await rig.open(), Ledger()
        workers = [await worker(rig) for _ in range(2)]
        sent = [_message(rig, Body(n)) for n in range(1500)]
        ledger.accept(sent)
        for at in range(0, len(sent), 100):
            await rig.publish(bus, *sent[at : at + 100])
        victim = workers[0]
        await rig.until(lambda: len(victim.of("end")) > 50, 30, "the victim has worked")
        await victim.kill()

        def ended() -> set[str]:
            return {told.id for one in workers for told in one.of("end")}

        await rig.until(lambda: len(ended()) >= len(sent), 40, "the survivor handles the rest")
        for one in workers:
            for line in one.told:
                if line.what == "end":
                    ledger.end("bill", msgspec.structs.replace(sent[0], id=line.id))
        ledger.check("bill", duplicates=8 + 512)
        stolen = {told.id for told in victim.of("begin")} & {told.id for told in workers[1].of("begin")}
        suspects = [told for told in workers[1].of("begin") if told.suspect]
        assert stolen or suspects, "inconclusive: nothing of the victim's came to the survivor"
        assert len(victim.of("end")) < len(sent), "inconclusive: the victim had handled everything"

    @scenario
    @needs("crash_count")
    async def test_poison_kills_its_process_and_no_neighbour(self, rig: Rig) -> None:
        """It ends in the dead letters after at most ``attempts + 1`` runs; everything beside it is handled."""
        if rig.bus.url is None:
            pytest.skip("a bus of one process: Bus has no url")
        bus = await rig.open()
        letters = await rig.tap(bus, DEAD + "shop.bill", "ops.letters")
        first = await worker(rig)
        sent = [_message(rig, Body(n, die=n == 20)) for n in range(60)]
        await rig.publish(bus, *sent)
        workers, end = [first], rig.clock.monotonic() + 60 * rig.bus.patience

        def ended() -> set[str]:
            return {told.id for one in workers for told in one.of("end")}

        while len(ended()) < 59 or not letters.ready:
            assert len(workers) <= 8, f"{len(ended())} of 59 handled, {len(letters.ready)} dead letters"
            here = workers[-1]
            await rig.until(lambda here=here: here.dead or len(ended()) == 59, 30)  # type: ignore[misc]
            if here.dead:
                workers.append(await worker(rig))
            else:  # or it comes back when all others are handled, and ends this one, too
                await letters._more(0.2)
            assert rig.clock.monotonic() < end, "no dead letter"
        runs = [told for one in workers for told in one.of("begin") if told.id == sent[20].id]
        assert 1 < len(runs) <= 4, f"the poison ran {len(runs)} times"
        (letter,) = letters.ready
        assert (letter.message.id, letter.message.header("tdgreason")) == (sent[20].id, "crashed")
        assert ended() == {message.id for message in sent} - {sent[20].id}

    @scenario
    @needs("ordered")
    async def test_ordered_group_over_processes(self, rig: Rig) -> None:
        """Two processes, failures in between, one of them killed: each key in order, one at a time."""
        if rig.bus.url is None:
            pytest.skip("a bus of one process: Bus has no url")
        bus, ledger = await rig.open(), Ledger()
        workers = [await worker(rig, ordered=True, sleep=0.003) for _ in range(2)]
        sent = [_message(rig, Body(n, fail=int(n % 80 == 3)), key=f"k{n % 40}") for n in range(400)]
        ledger.accept(sent)
        for at in range(0, len(sent), 50):
            await rig.publish(bus, *sent[at : at + 50])
            await asyncio.sleep(0.02)

        def ended() -> set[str]:
            return {told.id for one in workers for told in one.of("end")}

        await rig.until(lambda: len(ended()) > 150, 30)
        await workers[0].kill()
        await rig.until(lambda: len(ended()) >= len(sent), 40, "the survivor handles the rest")
        keys = {message.id: message for message in sent}
        lines = [(told.at, f"m{n}", told) for n, one in enumerate(workers) for told in one.told if told.id]
        tell = {"begin": ledger.begin, "end": ledger.end, "fail": ledger.fail}
        for _, member, told in sorted(lines, key=lambda line: line[0]):
            tell[told.what]("bill", keys[told.id], told.attempt, member)
        ledger.check("bill", duplicates=8 + 512)
        assert sum(told.what == "fail" for _, _, told in lines) >= 5, "inconclusive: nothing failed"
        assert all(one.of("end") for one in workers), "inconclusive: only one process had work"
        _check_first_ends(ledger, sent)

    @scenario
    async def test_app_and_process_share_the_work(self, rig: Rig) -> None:
        """Without faults: each message once over two processes, and every one of them had work."""
        if rig.bus.url is None:
            pytest.skip("a bus of one process: Bus has no url")
        ledger, here = Ledger(), list[str]()
        app: App = rig.app()
        other = await worker(rig, sleep=0.005)

        @app.on(placed, group="shop.bill", concurrency=8)
        async def bill(message: Message[Body]) -> None:
            await asyncio.sleep(0.005)
            here.append(message.id)

        drafts = [placed(Body(n), id=f"m{n}") for n in range(1000)]
        async with app:
            for at in range(0, 1000, 50):
                await app.publish_many(drafts[at : at + 50])
            ledger.accept(drafts)
            await rig.until(lambda: len(here) + len(other.of("end")) >= 1000, 40)
            await asyncio.sleep(0.2)
        for id in [*here, *(told.id for told in other.of("end"))]:
            ledger.end("bill", msgspec.structs.replace(drafts[0], id=id))
        ledger.check("bill")
        assert here, "inconclusive: this process had no work"
        assert other.of("end"), "inconclusive: the other process had no work"


def _check_first_ends(ledger: Ledger, sent: list[Message[Any]]) -> None:
    """Each key's messages ended for the first time in the order of publishing."""
    ranks = {message.id: rank for rank, message in enumerate(sent)}
    seen, last = set[str](), dict[str | None, int]()
    for entry in ledger.entries:
        if entry.what == "end" and entry.id not in seen:
            seen.add(entry.id)
            assert ranks[entry.id] > last.get(entry.key, -1), f"{entry.key}: {entry.id} ended out of order"
            last[entry.key] = ranks[entry.id]


def _message(rig: Rig, body: Body, **fields: Any) -> Message[Any]:
    return rig.message(body=msgspec.json.encode(body), **fields)
