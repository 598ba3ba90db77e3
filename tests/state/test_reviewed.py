"""What a review found in handlers that keep records, each with what it looked like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from tests.conformance.engines import engine_bus
from tests.state.stores import url_of
from tests.transports.consuming import until

from tidings import App, Backoff, Depends, Message, Partial, Reject, Service, State, Table, Topic
from tidings.keeping import Keeper
from tidings.kernel.errors import AnswerFailed, InvalidHandler, InvalidName, InvalidOption
from tidings.kernel.handler import Handler, Outgoing
from tidings.kernel.transport import ACK, Delivery, Settlement, Subscription
from tidings.middleware.dedup import Dedup
from tidings.relay import Way
from tidings.urls import options_for

words, heard = Topic("words", str), Topic("heard", int)
numbers = Topic("numbers", int)
kept = Table("kept", int)

ONCE = Backoff(attempts=1)


def refused() -> Message[Any]:
    """An output that no bus takes: nobody answers."""
    return Message("nobody", data=1, type="x", reply_to="_reply.none")


def bus(kind: str, folder: Path, **more: Any) -> App:
    return App("app", url_of(kind, folder), **more)


async def value(app: App, key: str = "k", table: Table[Any] = kept, store: str = "") -> Any:
    looked: Any = app.bus(store)
    found = await looked.records(table.name, [key])
    return table.decode(found[0].value) if found else None


def stats(app: App, group: str = "app.handle") -> tuple[int, int, int]:
    told = app.stats()[group]
    return told.handled, told.skipped, told.dead


# -- effects


async def test_an_answerer_that_fails_has_written_nothing() -> None:
    app, count = App("app", "memory://"), Service("count", int, int)

    @app.answer(count)
    async def answer(n: int, state: State) -> int:
        state.put(kept, "k", n)
        if n < 0:
            raise ValueError("negative")
        return n

    async with app:
        with pytest.raises(AnswerFailed):
            await app.request(count, -1)
        assert await value(app) is None
        assert await app.request(count, 1) == 1
        deadline = time.monotonic() + 20
        while await value(app) != 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_what_was_read_before_it_was_committed_is_as_good_as_its_commit(tmp_path: Path) -> None:
    app, ready, told = bus("sqlite", tmp_path, backoff=ONCE), asyncio.Event(), list[int]()

    @app.on(words, concurrency=4)
    async def handle(word: str, state: State) -> Message[Any]:
        if word == "writes":
            state.put(kept, "k", 100)
            ready.set()
            return refused()
        await ready.wait()
        await asyncio.sleep(0)
        return heard(await state.get(kept, "k") or 0)

    @app.on(heard)
    async def hear(n: int) -> None:
        told.append(n)

    async with app:
        await app.publish_many([words("writes"), words("reads")])
        await until(lambda: told and stats(app)[2])
        assert await value(app) is None
    assert told == [0], "it told of what never was"


async def test_a_deliverys_run_is_not_forgotten_when_its_claim_is_divided(tmp_path: Path) -> None:
    bus: Any = options_for(url_of("sqlite", tmp_path)).transport()
    await bus.open(lambda event: None)
    consumer = await bus.subscribe(Subscription(app="app", pattern="words", group="app.group"))
    await bus.publish([Message("words", b"1", f"id{n}", time=1.0, source="x") for n in range(3)])
    keeper = Keeper("app.group", bus, Way("app", ""), bus.clock)
    keeper.put(consumer)

    async def one(delivery: Delivery) -> Outgoing:
        keeper.state_of(delivery).put(kept, delivery.message.id, 1)
        return ()

    handle: Any = keeper.around(Handler(one=one)).one
    taken: list[Delivery] = []
    while len(taken) < 3:
        taken += await keeper.receive(10)
    first, hung, last = taken
    sent = await handle(first)
    later = time.monotonic() + bus.lease * 2
    consumer.extend_at(later, [first, last])  # the hung one ran past its deadline
    bus.steps.patient = 0
    await bus.writer.submit(partial(bus.steps.sweep, later + bus.lease / 2))
    await until(lambda: not hung.session.alive)
    await handle(last)
    keeper.purged = float("-inf")
    assert not await keeper.settle([Settlement(last, ACK)])
    assert not await keeper.settle([Settlement(first, ACK, sent)])
    assert [record.key for record in await bus.scan(kept.name)] == [first.message.id, last.message.id]
    await consumer.close()
    await bus.close()


async def test_nobody_builds_on_a_run_whose_message_was_lost() -> None:
    bus: Any = options_for("memory://").transport()
    await bus.open(lambda event: None)
    consumer = await bus.subscribe(Subscription(app="app", pattern="words", group="app.group"))
    await bus.publish([Message("words", b"1", f"id{n}", time=1.0, source="x") for n in range(2)])
    keeper, seen = Keeper("app.group", bus, Way("app", ""), bus.clock), list[Any]()
    keeper.put(consumer)

    async def one(delivery: Delivery) -> Outgoing:
        state = keeper.state_of(delivery)
        seen.append(await state.get(kept, "k"))
        state.put(kept, "k", len(seen))
        return ()

    handle: Any = keeper.around(Handler(one=one)).one
    first, second = await consumer.receive(10)
    await handle(first)
    consumer.group.end(first.session, [first.token], 0.0, lost=True)  # its lease has ended; the other is held on
    await keeper.settle([])
    await handle(second)
    assert seen == [None, None]
    assert not await keeper.settle([Settlement(second, ACK)])
    assert not keeper.pending
    assert not keeper.handled
    await bus.close()


async def test_of_a_batch_of_which_one_was_lost_nothing_is_written_and_nothing_settled() -> None:
    bus: Any = options_for("memory://").transport()
    await bus.open(lambda event: None)
    consumer = await bus.subscribe(Subscription(app="app", pattern="words", group="app.group"))
    await bus.publish([Message("words", b"1", f"id{n}", time=1.0, source="x") for n in range(2)])
    keeper = Keeper("app.group", bus, Way("app", ""), bus.clock)
    keeper.put(consumer)

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outgoing]:
        keeper.state_of(deliveries[0]).put(kept, "k", len(deliveries))
        return [()] * len(deliveries)

    handle: Any = keeper.around(Handler(many=many, batch=True)).many
    first, second = await consumer.receive(10)
    await handle([first, second])
    consumer.group.end(first.session, [first.token], 0.0, lost=True)
    (failure,) = await keeper.settle([Settlement(second, ACK)])  # the worker drops what is not ours any more
    assert (failure.index, failure.kind) == (0, "unknown")
    assert not await bus.records(kept.name, ["k"])
    await handle([second])
    assert not await keeper.settle([Settlement(second, ACK)])
    assert [kept.decode(record.value) for record in await bus.records(kept.name, ["k"])] == [1]
    await bus.close()


async def test_what_is_on_its_way_is_found_and_what_has_expired_is_removed() -> None:
    bus: Any = options_for("memory://").transport()
    await bus.open(lambda event: None)
    consumer = await bus.subscribe(Subscription(app="app", pattern="words", group="app.group"))
    await bus.publish([Message("words", b"1", f"id{n}", time=1.0, source="x") for n in range(2)])
    keeper, seen = Keeper("app.group", bus, Way("app", ""), bus.clock), list[Any]()
    keeper.put(consumer)
    old = Table("old", int, expires=True)

    async def one(delivery: Delivery) -> Outgoing:
        state = keeper.state_of(delivery)
        seen.append(await state.scan(old))
        state.put(old, delivery.message.id, 1, due=time.time() + (-1.0 if delivery.message.id == "id0" else 60.0))
        return ()

    handle: Any = keeper.around(Handler(one=one)).one
    first, second = await consumer.receive(10)
    await handle(first)
    await handle(second)
    assert seen == [{}, {"id0": 1}]
    keeper.purged = float("-inf")
    assert not await keeper.settle([Settlement(first, ACK), Settlement(second, ACK)])
    assert [record.key for record in await bus.scan("old")] == ["id1"]
    await bus.close()


@pytest.mark.parametrize("store", ["memory", "sqlite", "postgres"])
async def test_beside_a_broker_a_message_that_comes_twice_in_a_batch_counts_once(store: str, tmp_path: Path) -> None:
    app = App("app", engine_bus("redis").options(2.0), state=url_of(store, tmp_path))

    @app.on(numbers, batch=10, within="100ms", concurrency=1)
    async def handle(some: list[int], state: State) -> None:
        state.put(kept, "k", (await state.get(kept, "k") or 0) + sum(some))

    @app.on(numbers, group="app.single", concurrency=4)
    async def single(n: int, state: State) -> None:
        await asyncio.sleep(0)
        state.put(kept, "single", (await state.get(kept, "single") or 0) + n)

    async with app:
        await app.publish_many([numbers(1, id="m1"), numbers(1, id="m1"), numbers(5, id="m2"), numbers(1, id="m1")])
        await until(lambda: sum(stats(app)[:2]) == 4 and sum(stats(app, "app.single")[:2]) == 4)
        assert await value(app, store="state") == 6
        assert await value(app, "single", store="state") == 6


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
@pytest.mark.parametrize("batch", [False, True])
async def test_a_record_that_no_store_takes_fails_its_message_alone(kind: str, batch: bool, tmp_path: Path) -> None:
    app, runs = bus(kind, tmp_path, backoff=Backoff(attempts=2, first=0.01)), 0

    async def put(word: str, state: State) -> None:
        nonlocal runs
        runs += 1
        if word == "long":
            state.put(kept, "x" * 3000, 1)
        elif word == "surrogate":
            state.put(kept, "\ud800", 1)
        elif word == "large":
            state.put(large, "k", b"x" * (16 * 2**20 + 1))
        else:
            state.put(kept, word, 1)

    large = Table("large", bytes)
    if batch:

        @app.on(words, group="app.handle", batch=10, within="50ms", concurrency=1)
        async def several(some: list[str], state: State) -> None:
            for word in some:
                await put(word, state)
    else:

        @app.on(words, group="app.handle")
        async def handle(word: str, state: State) -> None:
            await put(word, state)

    async with app:
        await app.publish_many([words(word) for word in ("good", "long", "surrogate", "large", "fine")])
        await until(lambda: stats(app) == (2, 0, 3))
        assert runs < 40
        assert await value(app, "good") == await value(app, "fine") == 1


async def test_a_part_of_a_batch_that_failed_and_came_again_counts_once(tmp_path: Path) -> None:
    app, tries = bus("sqlite", tmp_path, backoff=Backoff(attempts=3, first=0.01)), 0

    @app.on(numbers, batch=10, within="50ms", concurrency=1)
    async def handle(some: list[int], state: State) -> None:
        nonlocal tries
        good = [n for n in some if n > 0 or tries]
        state.put(kept, "k", (await state.get(kept, "k") or 0) + sum(map(abs, good)))
        if len(good) < len(some):
            tries += 1
            raise Partial({index: RuntimeError("not now") for index, n in enumerate(some) if n < 0})

    async with app:
        await app.publish_many([numbers(n) for n in (1, 2, -3, 4)])
        await until(lambda: stats(app)[0] == 4)
        assert await value(app) == 10
    assert tries == 1


# -- Dedup


async def test_two_of_it_around_one_handler_are_refused() -> None:
    app = App("app", "memory://", middleware=[Dedup()])

    @app.on(words, middleware=[Dedup()])
    async def handle(word: str) -> None: ...

    with pytest.raises(InvalidOption, match=r"two Dedup\(\)"):
        async with app:
            pass


async def test_a_key_that_raises_fails_its_message_and_no_other() -> None:
    app, ran = App("app", "memory://", backoff=ONCE), list[str]()
    by: Callable[[Message[Any]], str] = lambda message: message.headers[0][1]  # type: ignore[index]  # noqa: E731

    @app.on(words, middleware=[Dedup(key=by)])
    async def handle(word: str) -> None:
        ran.append(word)

    async with app:
        await app.publish(words, "bare")
        await app.publish(words, "with", headers={"n": "1"})
        await until(lambda: stats(app) == (1, 0, 1))
    assert ran == ["with"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_is_handled_beside_one_that_fails_is_not_taken_for_done(kind: str, tmp_path: Path) -> None:
    app, ran = bus(kind, tmp_path, backoff=ONCE), list[str]()

    @app.on(words, middleware=[Dedup(key=lambda message: "all")], concurrency=4)
    async def handle(word: str) -> Message[Any] | None:
        ran.append(word)
        return refused() if word == "first" else None

    async with app:
        await app.publish_many([words("first"), words("second")])
        await until(lambda: stats(app)[::2] == (1, 1))
    assert ran[-1] == "second"


async def test_after_its_window_a_message_counts_again(tmp_path: Path) -> None:
    app, ran = bus("sqlite", tmp_path), 0

    @app.on(words, middleware=[Dedup(window="300ms")])
    async def handle(word: str) -> None:
        nonlocal ran
        ran += 1

    async with app:
        deadline = time.monotonic() + 20
        while ran < 2:
            await app.publish(words, "x", id="same")
            await asyncio.sleep(0.05)
            assert time.monotonic() < deadline
        assert stats(app)[1] >= 1, "nothing was skipped, so nothing was tried"


async def test_in_one_batch_only_the_first_of_each_runs(tmp_path: Path) -> None:
    app, calls = bus("memory", tmp_path), list[list[int]]()

    @app.on(numbers, batch=20, within="200ms", concurrency=1, middleware=[Dedup()])
    async def handle(some: list[int]) -> None:
        calls.append(some)

    async with app:
        await app.publish_many([numbers(n, id=f"n{n % 3}") for n in range(9)])
        await until(lambda: stats(app) == (3, 6, 0))
    assert calls == [[0, 1, 2]]


async def test_live_copies_do_not_share_what_they_have_seen(tmp_path: Path) -> None:
    url = url_of("sqlite", tmp_path)
    apps = [App("app", url, middleware=[Dedup()]), App("app", url, middleware=[Dedup()])]
    seen: list[list[int]] = [[], []]

    def register(number: int) -> None:
        @apps[number].on(numbers, live=True)
        async def watch(n: int) -> None:
            seen[number].append(n)

    register(0)
    register(1)
    async with apps[0] as app, apps[1]:
        await app.publish_many([numbers(n) for n in range(10)])
        await until(lambda: all(len(some) == 10 for some in seen))


# -- what is refused


def test_a_batch_has_one_state_and_no_other_parameter() -> None:
    app = App("app", "memory://")

    async def repository(state: State) -> str:
        return "a repository"

    with pytest.raises(InvalidHandler, match="takes a batch and"):

        @app.on(words, batch=10)
        async def handle(some: list[str], state: Annotated[str, Depends(repository)]) -> None: ...


@pytest.mark.parametrize("due", [datetime.now(UTC), "soon", float("nan"), float("inf")])
def test_a_due_time_is_a_number(due: Any) -> None:
    with pytest.raises(InvalidOption, match="due cannot be"):
        State(None, {}).put(kept, "k", 1, due=due)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [None, 7, "a\0b", "\udc80", "x" * 501])
def test_a_key_is_a_text_that_every_store_takes(key: Any) -> None:
    with pytest.raises(InvalidName):
        State(None, {}).put(kept, key, 1)  # type: ignore[arg-type]


async def test_rejects_are_dead_letters_beside_a_store_too(tmp_path: Path) -> None:
    app = App("app", engine_bus("redis").options(2.0), state=url_of("sqlite", tmp_path))

    @app.on(words)
    async def handle(word: str, state: State) -> None:
        state.put(kept, "k", 1)
        raise Reject("never")

    async with app:
        await app.publish(words, "x")
        await until(lambda: stats(app)[2] == 1)
        assert await value(app, store="state") is None
