"""Process managers: state that follows events, timeouts, ends; nothing is lost or done twice, whatever is killed."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec import Struct
from tests.conformance.engines import engine_bus
from tests.kernel.rig import virtual
from tests.patterns import process_worker as scenario
from tests.patterns.killing import KINDS, Killing, url_of

from tidings import App, Message, State, Table, Topic
from tidings.kernel.errors import InvalidHandler, InvalidOption
from tidings.patterns import Process, ProcessManager
from tidings.testing import running
from tidings.topology import topology


class Event(Struct):
    id: str
    n: int = 0


class Count(Struct):
    total: int = 0


begun, added, ended = Topic("begun", Event), Topic("added", Event), Topic("ended", Event)
totals = Topic("totals", Count)


def counting(app: App, **options: Any) -> ProcessManager[Count]:
    """Processes that add up."""
    counts = ProcessManager(app, "counts", Count, **options)

    @counts.on(begun, by=lambda event: event.id, begins=True)
    async def begin(event: Event, process: Process[Count]) -> None:
        process.state = Count(process.state.total + event.n)

    @counts.on(added, by=lambda event: event.id)
    async def add(event: Message[Event], process: Process[Count], message: Message[Event]) -> None:
        assert event == message
        process.state.total += event.data.n
        if event.data.n < 0:
            raise ValueError("negative")

    @counts.on(ended, by=lambda event: event.id)
    async def end(event: Event, process: Process[Count]) -> Message[Count]:
        process.end()
        return totals(process.state, key=process.id)

    return counts


def decoded(messages: list[Message[Any]]) -> list[tuple[str | None, int]]:
    return [(message.key, msgspec.json.decode(message.body, type=Count).total) for message in messages]


@virtual
async def test_state_follows_events_of_each_process_alone() -> None:
    app = App("desk", "memory://")
    counting(app)
    async with running(app) as captured:
        await app.publish_many([begun(Event("a", 1)), begun(Event("b", 2))])
        await captured.idle()
        await app.publish_many([added(Event("a", 10)) for _ in range(50)])
        await app.publish_many([added(Event("b", 100)) for _ in range(50)])
        await captured.idle()
        await app.publish_many([ended(Event("a")), ended(Event("b"))])
        await captured.idle()
        assert sorted(decoded(await captured.messages("totals"))) == [("a", 501), ("b", 5002)]
        assert await captured.dead() == []


@virtual
async def test_a_handler_that_raises_has_changed_nothing() -> None:
    app = App("desk", "memory://")
    counting(app)
    async with running(app) as captured:
        await app.publish(begun(Event("a", 1)))
        await captured.idle()
        await app.publish(added(Event("a", -100)))
        await captured.idle(timeout=86_400)
        await app.publish(ended(Event("a")))
        await captured.idle()
        assert decoded(await captured.messages("totals")) == [("a", 1)]
        assert len(await captured.dead("desk.add")) == 1


@virtual
async def test_an_event_waits_for_the_first_and_is_late_after_the_last() -> None:
    app = App("desk", "memory://")
    counting(app, patience="10s")
    async with running(app) as captured:
        await app.publish(added(Event("a", 5)))
        await asyncio.sleep(5)
        await app.publish(begun(Event("a", 1)))
        await captured.idle()
        await app.publish(added(Event("nobody", 5)))
        await app.publish(ended(Event("a")))
        await captured.idle(timeout=600)
        assert decoded(await captured.messages("totals")) == [("a", 6)]
        [letter] = await captured.dead()
        assert "no process 'nobody' of 'counts' has begun" in letter.header("tdgdetail")
        for late in (begun(Event("a", 1)), added(Event("a", 1)), ended(Event("a"))):
            await app.publish(late)
        await captured.idle()
        assert len(await captured.messages("totals")) == 1
        assert sum(stats.skipped for stats in app.stats().values()) == 3


@virtual
async def test_timeouts() -> None:
    app, fired = App("desk", "memory://"), list[tuple[str, float]]()
    waits = ProcessManager(app, "waits", Count)

    @waits.on(begun, by=lambda event: event.id, begins=True)
    async def begin(event: Event, process: Process[Count]) -> None:
        process.timeout("10s")

    @waits.on(added, by=lambda event: event.id)
    async def add(event: Event, process: Process[Count]) -> None:
        if event.n:
            process.timeout(None if event.n < 0 else event.n)

    @waits.on(ended, by=lambda event: event.id)
    async def end(event: Event, process: Process[Count]) -> None:
        process.end()

    @waits.timeout
    async def late(process: Process[Count]) -> Message[Count]:
        process.state.total += 1
        if process.state.total < 3:
            process.timeout("5s")
        else:
            process.end()
        return totals(process.state, key=process.id)

    async def times(id: str) -> list[float]:
        return [round(m.time - start) for m in await captured.messages("totals") if m.key == id]

    async with running(app) as captured:
        first = [begun(Event(id)) for id in ("left", "later", "never", "ended", "touched")]
        await app.publish_many(first)
        start = (await captured.messages("begun"))[0].time
        await captured.idle()
        await app.publish_many([added(Event("later", 20)), added(Event("never", -1)), ended(Event("ended"))])
        await app.publish(added(Event("touched", 0)))
        await asyncio.sleep(100)
        assert fired == []
        assert await times("left") == await times("touched") == [10, 15, 20]
        assert await times("later") == [20, 25, 30]
        assert await times("never") == await times("ended") == []


@virtual
async def test_other_records_of_the_handler_go_with_the_process() -> None:
    app, seen = App("desk", "memory://"), Table("seen", int)
    manager = ProcessManager(app, "odd", Count, new=lambda: Count(7))

    @manager.on(Topic("{kind}.odd", Event), by=lambda event: event.id, begins=True, to=totals)  # type: ignore[call-arg, type-var]
    async def odd(event: Event, process: Process[Count], state: State, kind: str) -> Count:
        state.put(seen, kind, 1 + (await state.get(seen, kind) or 0))
        return Count(process.state.total)

    async with running(app) as captured:
        await app.publish_many([Topic("very.odd", Event)(Event(str(n))) for n in range(20)])
        await captured.idle()
        assert decoded(await captured.messages("totals")) == [(None, 7)] * 20
        store: Any = app.bus()
        [record] = await store.records("seen", ["very"])
        assert record.value == b"20"
        assert {info.name: info.records for info in await store.tables()} == {"odd": 20, "seen": 1}


@virtual
async def test_what_by_returns_is_checked() -> None:
    app = App("desk", "memory://")
    manager = ProcessManager(app, "odd", Count)

    @manager.on(begun, by=lambda event: event.n, begins=True)  # type: ignore[arg-type, return-value]
    async def odd(event: Event, process: Process[Count]) -> None: ...

    async with running(app) as captured:
        await app.publish(begun, Event("a", 1))
        await captured.idle()
        [letter] = await captured.dead()
        assert "returned 1" in letter.header("tdgdetail")


def test_what_cannot_be_is_refused() -> None:
    app = App("desk", "memory://")
    manager = ProcessManager(app, "odd", Event)
    with pytest.raises(InvalidOption, match="no new state can be made"):
        manager.on(begun, by=lambda event: event.id, begins=True)
    with pytest.raises(InvalidOption, match="by cannot be"):
        manager.on(begun, by="id")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="one event at a time"):
        manager.on(begun, by=lambda event: event.id, batch=10)  # type: ignore[call-arg]

    def plain(event: Event, process: Process[Event]) -> None: ...
    async def alone(event: Event) -> None: ...
    async def late(process: Process[Event]) -> None: ...

    for wrong in (plain, alone):
        with pytest.raises(InvalidHandler, match="no handler of 'odd'") as caught:
            manager.on(added, by=lambda event: event.id)(wrong)  # type: ignore[arg-type]
        assert __file__ in caught.value.where
    manager.timeout(late)
    with pytest.raises(InvalidHandler, match="cannot handle timeouts"):
        manager.timeout(late)


@virtual
async def test_a_timeout_without_a_handler_is_an_error_of_the_handler() -> None:
    app = App("desk", "memory://")
    manager = ProcessManager(app, "odd", Count)

    @manager.on(begun, by=lambda event: event.id, begins=True)
    async def begin(event: Event, process: Process[Count]) -> None:
        process.timeout("1s")

    async with running(app) as captured:
        await app.publish(begun, Event("a"))
        await captured.idle(timeout=86_400)
        [letter] = await captured.dead()
        assert "has no handler of timeouts" in letter.header("tdgdetail")


def test_it_is_shown_as_what_it_is() -> None:
    graph = topology(scenario.app("memory://"))
    roles = {node.name: node.role for node in graph.nodes.values() if node.kind == "handler"}
    manages = "process manager"
    assert roles == {"begin": manages, "charge": "", "pay": manages, "ship": manages, "give_up-due": manages}
    sends = {(edge.source.rpartition(".")[2], edge.target) for edge in graph.edges if edge.kind == "sends"}
    assert ("begin", "topic::orders.charged") in sends
    assert ("give_up-due", "topic::cancelled") in sends


# -- kill -9


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [*KINDS, "nats"])
async def test_killed_at_random_each_process_ends_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, started = str(cast(Any, engine_bus(kind)).url(2.0)) if kind == "nats" else url_of(kind, tmp_path), list[str]()
    if kind == "nats":  # which keeps no records
        monkeypatch.setenv("TIDINGS_URL_STATE", f"sqlite:///{tmp_path}/state.db?lease=1s")
    async with Killing("tests.patterns.process_worker", url) as killing:

        async def feed(number: int) -> None:
            names = [f"{number}-{n}{'-never' * (n % 3 == 0)}" for n in range(30)]
            await killing.app.publish_many([scenario.placed(name) for name in names])
            started.extend(names)

        async def ended() -> int:
            return len(await published(killing, "completed")) + len(await published(killing, "cancelled"))

        async def done() -> bool:
            return await killing.idle() and await ended() == len(started)

        await killing.rounds(feed, done, ended)
        found = {topic: await published(killing, topic) for topic in TOPICS}
    async with App("look", os.environ.get("TIDINGS_URL_STATE", url)).connect() as look:
        left = {info.name: info.records for info in await cast(Any, look.bus()).tables()}
    judge(found, started)
    assert left.get("orders", 0) == left.get("orders.timeouts", 0) == 0
    assert left["orders.ended"] == len(started)


TOPICS = ("orders.charged", "orders.paid", "shipped", "completed", "cancelled", "_dead.>")


async def published(killing: Killing, topic: str) -> list[Message[Any]]:
    """What was published to a topic. Beside a store, what came twice under one id is one for whoever knows ids."""
    log = await killing.log(topic)
    return list({message.id: message for message in log}.values()) if "TIDINGS_URL_STATE" in os.environ else log


def judge(found: dict[str, list[Message[Any]]], started: list[str]) -> None:
    """Each order is charged once, and either paid, shipped and completed once, or cancelled once."""
    paying = [name for name in started if not name.endswith("-never")]
    assert found["_dead.>"] == []
    assert Counter(m.body.decode() for m in found["orders.charged"]) == Counter(started)
    assert Counter(m.body.decode() for m in found["orders.paid"]) == Counter(paying * 2)
    assert Counter(m.body.decode() for m in found["shipped"]) == Counter(paying)
    assert Counter(m.key for m in found["completed"]) == Counter(paying)
    assert Counter(m.key for m in found["cancelled"]) == Counter(set(started) - set(paying))
    states = [msgspec.json.decode(m.body, type=scenario.Shipping) for m in found["completed"]]
    assert states == [scenario.Shipping(2, ["placed", "paid", "paid"])] * len(paying)
