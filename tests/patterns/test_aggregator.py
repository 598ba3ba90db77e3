"""Aggregator: what completes a group, what becomes of the rest, what fails, and that no crash loses or doubles any."""

from __future__ import annotations

import asyncio
import operator
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import Struct
from msgspec.json import decode
from msgspec.structs import replace
from tests.patterns.aggregator_worker import SIZE, Line, Seen, Whole, idles, lines, seens, wholes
from tests.patterns.killing import KINDS, ROUNDS, Killing, url_of
from tests.state.stores import STORES
from tests.state.stores import url_of as store_url
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Router, State, Table, Topic
from tidings.kernel.codec import decoder
from tidings.kernel.errors import Conflict, InvalidHandler, InvalidOption, UsageError
from tidings.patterns import aggregator, sequenced
from tidings.patterns._aggregation import Aggregation
from tidings.patterns._completion import Completion
from tidings.patterns._grouping import Listed
from tidings.store import Unit


class Total(Struct):
    order: str
    count: int = 0
    sum: int = 0


totals = Topic("totals", Total)


def add(total: Total | None, line: Line) -> Total:
    before = total or Total(line.order)
    return Total(line.order, before.count + 1, before.sum + line.n)


each_store = pytest.mark.parametrize("kind", STORES)


def by(line: Line) -> str:
    return line.order


def together(collected: list[Line]) -> Whole:
    return Whole(collected[0].order, [line.n for line in collected])


def listen(app: App, topic: Topic[Any] = wholes) -> list[Message[Any]]:
    came: list[Message[Any]] = []

    async def heard(message: Message[Any]) -> None:
        came.append(message)

    app.on(topic, concurrency=1, group=f"test.{topic.name}")(heard)
    return came


async def tables(app: App) -> dict[str, int]:
    bus: Any = app.bus()
    return {t.name: t.records for t in await bus.tables() if t.name != "_leases"}


async def empty(app: App) -> None:
    """Until nothing is kept."""
    async with asyncio.timeout(20):
        while await tables(app):  # noqa: ASYNC110  # a bus tells nobody
            await asyncio.sleep(0.01)


async def letters(app: App, count: int, group: str = "shop.together") -> list[Message[Any]]:
    """All dead letters, once there are so many."""
    bus: Any = app.bus()
    async with asyncio.timeout(20):
        while len(found := await bus.peek(f"_dead.{group}", limit=1000)) < count:  # noqa: ASYNC110  # a bus tells nobody
            await asyncio.sleep(0.01)
    return [stored.message for stored in found]


def shop(kind: str, folder: Path, **more: Any) -> App:
    return App("shop", store_url(kind, folder), breaker=None, **more)


# -- complete


@each_store
async def test_by_size(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    assert aggregator(app, lines, by=by, size=3, to=wholes)(together) is together
    async with app:
        await app.publish_many([lines(Line(f"o{n % 4}", n), id=f"m{n}") for n in range(14)])
        await until(lambda: len(came) == 4 and app.stats()["shop.together"].handled == 14)
        assert await tables(app) == {"shop.together.open": 2}
    assert {m.data.order: m.data.numbers for m in came} == {f"o{n}": [n, n + 4, n + 8] for n in range(4)}
    assert {m.key for m in came} == {"o0", "o1", "o2", "o3"}
    assert {m.header("aggregate") for m in came} == {"complete"}
    assert {m.correlation_id for m in came} == {"m0", "m1", "m2", "m3"}


@each_store
async def test_by_a_predicate_on_the_list(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)

    @aggregator(app, lines, by=by, until=lambda found: found[-1].text == "last", to=wholes)
    async def together(collected: list[Line]) -> Whole:
        return Whole(collected[0].order, [line.n for line in collected])

    async with app:
        for n in range(5):
            await app.publish_many([lines(Line(o, n, "last" if n == 4 else "")) for o in "ab"])
        await until(lambda: len(came) == 2)
        assert await tables(app) == {}
    assert [m.data.numbers for m in came] == [list(range(5))] * 2


@each_store
async def test_a_total(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app, totals)

    @aggregator(app, lines, by=by, fold=add, until=lambda total: total.count == 100, to=totals)
    def total(found: Total) -> Total:
        return found

    async with app:
        for first in range(0, 200, 10):
            await app.publish_many([lines(Line(f"o{n % 2}", n)) for n in range(first, first + 10)])
        await until(lambda: len(came) == 2)
        assert await tables(app) == {}
    assert sorted((m.data.order, m.data.sum) for m in came) == [("o0", 9900), ("o1", 10000)]


@each_store
async def test_a_sequence_in_its_order(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, to=wholes)(together)
    parts = sequenced([lines(Line("o", n)) for n in range(20)], "s1")
    Random(1).shuffle(parts)
    async with app:
        await app.publish_many([*parts, lines(Line("o", 99))])
        await until(lambda: came and app.stats()["shop.together"].dead == 1)
        (letter,) = await letters(app, 1)
    assert [(m.key, m.data.numbers) for m in came] == [("s1", list(range(20)))]
    assert "part of no sequence" in letter.header("tdgdetail")


@each_store
@pytest.mark.parametrize(("rule", "said"), [({"timeout": "200ms"}, "timeout"), ({"idle": "200ms"}, "idle")])
async def test_by_time(kind: str, rule: Any, said: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=3, to=wholes, **rule)(together)
    async with app:
        await app.publish_many([lines(Line(o, n)) for o, n in (("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2))])
        await until(lambda: len(came) == 2)
        assert await tables(app) == {}
    assert [(m.data.order, m.data.numbers, m.header("aggregate")) for m in came] == [
        ("b", [0, 1, 2], "complete"),
        ("a", [0, 1], said),
    ]


async def test_who_keeps_coming_is_not_idle(tmp_path: Path) -> None:
    """Idle counts from the last message, timeout from the first."""
    app = shop("memory", tmp_path)
    idle, timed = listen(app, idles), listen(app)
    aggregator(app, lines, by=by, idle="600ms", to=idles, group="shop.idle")(together)
    aggregator(app, lines, by=by, timeout="600ms", to=wholes)(together)
    sent = 0
    async with app:
        while len(timed) < 2:
            await app.publish(lines, Line("a", sent))
            sent += 1
            await until(lambda: app.stats()["shop.idle"].handled == sent)  # noqa: B023
        assert idle == []
        await until(lambda: idle)
    assert idle[0].data.numbers == list(range(sent))


# -- what is incomplete, and what is late


@each_store
async def test_partial_groups_are_dropped_or_dead(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=3, timeout="100ms", partial="drop", to=wholes, group="shop.dropped")(together)
    aggregator(app, lines, by=by, size=3, timeout="100ms", partial="dead", to=wholes)(together)
    async with app:
        await app.publish_many([lines(Line("a", n), id=f"m{n}", key="k", headers={"x": "1"}) for n in range(2)])
        await until(lambda: all(s.handled == 2 for g, s in app.stats().items() if g.startswith("shop")))
        await empty(app)
        found = await letters(app, 2)
        assert await letters(app, 0, "shop.dropped") == []
    assert came == []
    assert [(m.id, m.topic, m.key, m.header("x"), m.header("tdgreason")) for m in found] == [
        (f"m{n}", "lines", "k", "1", "timeout") for n in range(2)
    ]
    assert [m.body for m in found] == [b'{"order":"a","n":%d,"text":""}' % n for n in range(2)]


@each_store
@pytest.mark.parametrize("late", ["new", "drop", "dead"])
async def test_what_comes_late(kind: str, late: Any, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=2, late=late, to=wholes)(together)
    async with app:
        await app.publish_many([lines(Line("a", n), id=f"m{n}") for n in range(3)])  # in one batch
        await until(lambda: app.stats()["shop.together"].handled == 3)
        await app.publish_many([lines(Line("a", 3), id="m3")])
        await until(lambda: app.stats()["shop.together"].handled == 4 and len(came) == (2 if late == "new" else 1))
        found = await letters(app, 2 if late == "dead" else 0)
        assert await tables(app) == ({} if late == "new" else {"shop.together.open": 1})
    assert [m.data.numbers for m in came] == ([[0, 1], [2, 3]] if late == "new" else [[0, 1]])
    assert len({m.id for m in came}) == len(came)
    assert [(m.id, m.header("tdgreason")) for m in found] == (
        [("m2", "late"), ("m3", "late")] if late == "dead" else []
    )


@each_store
async def test_a_closed_group_is_forgotten(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=1, late="drop", remember="100ms", to=wholes)(together)
    async with app:
        await app.publish(lines, Line("a", 0))
        await until(lambda: len(came) == 1)
        await empty(app)
        await app.publish(lines, Line("a", 1))
        await until(lambda: len(came) == 2)


# -- once


@each_store
async def test_a_message_that_comes_twice_counts_once(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=40, to=wholes)(together)
    async with app:
        for first in range(0, 40, 5):
            some = [lines(Line("a", n, "x" * 100), id=f"m{n}") for n in range(first, first + 5)]
            again = [lines(Line("a", n, "x" * 100), id=f"m{n}") for n in range(0, first, 7)]
            await app.publish_many([*some, *again, *some[:2]])
        await until(lambda: came)
    assert came[0].data.numbers == list(range(40))


@each_store
async def test_a_group_of_many_is_kept_in_chunks(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=2000, to=wholes)(together)
    keys = ["a", "a/b", "", "ä\U0001f600/", "a" * 500]
    sent = [lines(Line(key, n, "x" * (n % 50))) for n in range(2000) for key in keys]
    async with app:
        for first in range(0, len(sent), 700):
            await app.publish_many(sent[first : first + 700])
            if first == 7000:
                await until(lambda: app.stats()["shop.together"].handled == 7700)
                assert (await tables(app))["shop.together.items"] > 50
        await until(lambda: len(came) == len(keys), within=60)
        assert await tables(app) == {}
    assert {m.data.order: m.data.numbers for m in came} == {key: list(range(2000)) for key in keys}


async def test_the_next_group_of_a_key_in_the_same_batch_is_another(tmp_path: Path) -> None:
    """Also when both have chunks."""
    app = shop("sqlite", tmp_path)
    came = listen(app)
    aggregator(app, lines, by=by, size=50, to=wholes)(together)
    async with app:
        app.pause("shop.together")
        await app.publish_many([lines(Line("a", n, "x" * 200)) for n in range(175)])
        app.pause("shop.together", False)
        await until(lambda: len(came) == 3)
        assert (await tables(app))["shop.together.open"] == 1
    assert [m.data.numbers for m in came] == [list(range(n, n + 50)) for n in (0, 50, 100)]


async def test_the_same_result_has_the_same_id(tmp_path: Path) -> None:
    ids = []
    for turn in range(2):
        (tmp_path / str(turn)).mkdir()
        app = shop("sqlite", tmp_path / str(turn))
        came = listen(app)
        aggregator(app, lines, by=by, size=2, to=wholes)(together)
        async with app:
            await app.publish_many([lines(Line("a", n), id=f"m{n}") for n in range(4)])
            await until(lambda: len(came) == 2)  # noqa: B023
        ids.append([m.id for m in came])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2


@each_store
@pytest.mark.parametrize("ordered", [False, True])
async def test_two_processes_share_the_groups(kind: str, ordered: bool, tmp_path: Path) -> None:
    url = store_url(kind, tmp_path)
    apps = [App("shop", url, breaker=None), App("shop", url, breaker=None)]
    came = listen(apps[0])
    for app in apps:
        aggregator(app, lines, by=by, size=20, to=wholes, ordered=ordered)(together)
    keys = [f"o{n}" for n in range(40)]
    sent = [lines(Line(key, n), key=key if ordered else None) for n in range(20) for key in keys]
    async with apps[0] as app, apps[1]:
        for turn, first in enumerate(range(0, len(sent), 100)):
            for n, one in enumerate(apps):  # one, the other, both; of ordered ones each has its keys anyway
                one.pause("shop.together", not ordered and turn % 3 == n)
            await app.publish_many(sent[first : first + 100])
            await until(lambda: sum(a.stats()["shop.together"].handled for a in apps) >= first + 100)  # noqa: B023
        for one in apps:
            one.pause("shop.together", False)
        await until(lambda: len(came) >= 40 and sum(a.stats()["shop.together"].handled for a in apps) == len(sent))
        assert await tables(app) == {}
        assert all(a.stats()["shop.together"].handled for a in apps), "one had nothing to do"
    assert sorted(m.data.order for m in came) == sorted(keys)
    assert [sorted(m.data.numbers) for m in came] == [list(range(20))] * 40
    assert not ordered or [m.data.numbers for m in came] == [list(range(20))] * 40


@pytest.mark.parametrize("beside", ["nats", "redis"])
async def test_beside_a_bus_that_keeps_no_records(beside: str, tmp_path: Path) -> None:
    from tests.conformance.engines import engine_bus

    app = App("shop", engine_bus(beside).options(2.0), state=f"sqlite:///{tmp_path / 'state.db'}")
    came = listen(app)
    aggregator(app, lines, by=by, size=3, timeout="300ms", to=wholes)(together)
    aggregator(app, lines, by=by, size=3, timeout="300ms", partial="dead", to=idles, group="shop.strict")(together)
    async with app:
        await app.publish_many([lines(Line(f"o{n % 4}", n)) for n in range(14)])
        await until(lambda: len(came) == 6)
        store: Any = app.bus("state")
        async with asyncio.timeout(20):
            while len(await store.peek("_dead.shop.strict")) < 2:  # noqa: ASYNC110  # a bus tells nobody
                await asyncio.sleep(0.01)
    assert sorted((m.data.order, m.data.numbers) for m in came if len(m.data.numbers) == 3) == [
        (f"o{n}", [n, n + 4, n + 8]) for n in range(4)
    ]


# -- what fails


@each_store
async def test_a_function_that_fails_leaves_the_group_as_it_was(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path, backoff=Backoff(attempts=3, first=0.01))
    came, tries = listen(app), list[list[int]]()

    @aggregator(app, lines, by=by, size=3, to=wholes)
    def together(collected: list[Line]) -> Whole | None:
        if collected[0].order == "bad":
            tries.append([line.n for line in collected])
            if tries[-1] == [0, 1, 2]:
                raise OSError("as told")
        return None if collected[0].order == "none" else Whole(collected[0].order, [line.n for line in collected])

    async with app:
        sent = [lines(Line(order, n), id=f"{order}{n}") for n in range(3) for order in ("good", "bad", "none")]
        await app.publish_many(sent)
        await until(lambda: app.stats()["shop.together"].dead == 1 and app.stats()["shop.together"].handled == 8)
        assert (await tables(app)) == {"shop.together.open": 1}
        await app.publish(lines, Line("bad", 3))
        await until(lambda: len(came) == 2)
        (letter,) = await letters(app, 1)
    assert letter.id == "bad2"
    assert [m.data.numbers for m in came] == [[0, 1, 2], [0, 1, 3]]
    assert tries.count([0, 1, 2]) >= 3


@each_store
async def test_a_function_that_fails_when_its_time_has_come_is_called_again(kind: str, tmp_path: Path) -> None:
    app, failures = shop(kind, tmp_path), iter([True, True, False])
    came = listen(app)

    @aggregator(app, lines, by=by, timeout="50ms", to=wholes)
    def together(collected: list[Line]) -> Whole:
        if next(failures):
            raise OSError("as told")
        return Whole(collected[0].order, [line.n for line in collected])

    async with app:
        await app.publish_many([lines(Line("a", n)) for n in range(2)])
        await until(lambda: came)
    assert came[0].data.numbers == [0, 1]


async def test_a_key_that_is_none_is_a_dead_letter(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    came = listen(app)

    def wrong(line: Line) -> Any:
        return {"number": 7, "nul": "a\0b", "torn": "\ud800"}.get(line.order, line.order)

    aggregator(app, lines, by=wrong, size=1, to=wholes)(together)
    async with app:
        await app.publish_many([lines(Line(order, 0)) for order in ("number", "fine", "nul", "torn")])
        await until(lambda: app.stats()["shop.together"].dead == 3 and came)
        assert {"by= returned" in letter.header("tdgdetail") for letter in await letters(app, 3)} == {True}
    assert [m.data.order for m in came] == ["fine"]


async def test_a_fold_that_returns_nothing_is_a_dead_letter(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)

    def forgets(total: Total | None, line: Line) -> Total:
        return None  # type: ignore[return-value]

    aggregator(app, lines, by=by, fold=forgets, size=2, to=totals, group="shop.together")(lambda total: total)
    async with app:
        await app.publish(lines, Line("a", 0))
        await until(lambda: app.stats()["shop.together"].dead == 1)
        (letter,) = await letters(app, 1)
    assert "forgets() returned nothing" in letter.header("tdgdetail")
    assert __file__ in letter.header("tdgdetail")


# -- what was decided by what was read


@pytest.mark.parametrize("late", ["new", "drop"])
async def test_what_changes_nothing_fails_with_what_it_was_decided_by(late: Any) -> None:
    """A message comes again, or late, while what it meets is not committed: if that fails, it must come once more."""
    kept = Listed[Line]("t.items", decoder(Line), looks=False, numbered=False)
    size = 2 if late == "new" else 1  # open, or closed
    rules = Completion(size=size, late=late)
    found = Aggregation(
        fn=together, to=wholes, group="shop.together", rules=rules, kept=kept, table=Table("t.open", bytes), by=by
    )
    message: Any = replace(lines(Line("a", 1), id="m1"), body=b'{"order":"a","n":1}')
    async with App("shop", "memory://").connect() as app:
        store: Any = app.bus()
        pending: Any = {}
        first, second = State(store, pending), State(store, pending)
        for state in (first, second):
            await found.collect([message], state)
            assert state.stage()
        (failure,) = await store.commit([Unit(second.writes)])  # the first never is
        assert isinstance(failure.error, Conflict)
        assert not await store.commit([Unit(first.writes), Unit(second.writes)])


# -- what is refused


def untyped(total, line):  # type: ignore[no-untyped-def]
    return total


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"by": by}, InvalidOption, "no group would ever be complete"),
        ({"by": "order", "size": 3}, InvalidOption, "by cannot be"),
        ({"by": by, "size": 0}, InvalidOption, "size cannot be 0"),
        ({"by": by, "timeout": "soon"}, InvalidOption, "timeout cannot be"),
        ({"by": by, "timeout": 0}, InvalidOption, "timeout cannot be 0"),
        ({"by": by, "size": 3, "late": "never"}, InvalidOption, "late cannot be 'never'"),
        ({"by": by, "size": 3, "partial": "new"}, InvalidOption, "partial cannot be 'new'"),
        ({"by": by, "sise": 3}, InvalidOption, "did you mean 'size'"),
        ({"by": by, "size": 3, "batch": 7}, InvalidOption, "no option 'batch'"),
        ({"by": by, "size": 3, "fold": add, "partial": "dead"}, InvalidOption, "fold"),
        ({"by": by, "size": 3, "fold": untyped}, InvalidHandler, "does not say what it returns"),
        ({"by": by, "size": 3, "fold": operator.add}, InvalidHandler, "does not say what it returns"),
        ({"by": by, "size": 3, "to": Topic("orders.{id}", Whole)}, InvalidOption, "to cannot be"),
    ],
)
def test_refused_at_the_line(options: dict[str, Any], kind: type[UsageError], said: str) -> None:
    app = App("shop", "memory://")
    with pytest.raises(kind) as caught:
        aggregator(app, lines, **{"to": wholes, **options})(together)
    assert said in str(caught.value)
    assert app.registrations == []


def test_a_router_has_no_name_to_keep_records_by() -> None:
    router = Router()
    with pytest.raises(InvalidOption, match="needs a group=") as caught:
        aggregator(router, lines, by=by, size=2, to=wholes)(together)
    assert caught.value.where.startswith(__file__)
    aggregator(router, lines, by=by, size=2, to=wholes, group="shop.together")(together)
    assert [(r.group, r.where.rpartition(":")[0]) for r in router.registrations] == [("shop.together", __file__)]


# -- other payloads


class Reading(Struct):
    readings: list[int]


@each_store
@pytest.mark.parametrize(("kind_of", "sent"), [(str, ["a", "b"]), (bytes, [b"\0", b"\xff"]), (Any, [{"a": 1}, "b"])])
async def test_payloads_of_any_kind(kind: str, kind_of: Any, sent: list[Any], tmp_path: Path) -> None:
    app, source, to = shop(kind, tmp_path), Topic("source", kind_of), Topic("target", int)
    came, got = listen(app, to), list[Any]()

    @aggregator(app, source, by=lambda payload: "one", size=4, to=to)
    def together(found: list[Any]) -> int:
        got.extend(found)
        return len(found)

    async with app:
        for payload in sent * 2:
            await app.publish(source, payload)
        await until(lambda: came)
    assert got == sent * 2


# -- kill -9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_random_it_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    luck, sent = Random(3), defaultdict[str, list[int]](list)
    waiting: list[tuple[str, int]] = []

    async with Killing("tests.patterns.aggregator_worker", url_of(kind, tmp_path)) as killing:
        bus: Any = killing.app.bus()

        async def feed(number: int) -> None:
            """Orders whose lines come over several rounds, in any order, and some twice."""
            waiting.extend((f"o{number}-{k}", n) for k in range(15) for n in range(SIZE))
            luck.shuffle(waiting)
            now = [waiting.pop() for _ in range(len(waiting) // 2)]
            await publish([*now, *now[:10]])

        async def publish(some: list[tuple[str, int]]) -> None:
            for order, n in some:
                if n not in sent[order]:
                    sent[order].append(n)
            messages = [lines(Line(order, n, "x" * (n * 40)), id=f"{order}/{n}") for order, n in some]
            await killing.app.publish_many(messages)

        async def look() -> int:
            return sum(t.records for t in await bus.tables() if t.name == "shop.whole.open")

        async def done() -> bool:
            idle = await killing.idle()
            return idle and not any(t.name == "shop.rested.open" for t in await bus.tables())

        seen = await killing.rounds(feed, done, look, hit=True)
        assert any(seen), "no group was open when it died"
        await publish(waiting)
        await killing.rounds(nothing_more, done, look, count=1)
        whole, seen_all, idle = [await killing.log(topic.name) for topic in (wholes, seens, idles)]
        assert await killing.log("_dead.>") == []
    judge(sent, whole)
    judge_others(sent, seen_all, idle)


async def nothing_more(number: int) -> None: ...


def judge(sent: dict[str, list[int]], whole: list[Any]) -> None:
    found = {str(m.key): decode(m.body, type=Whole) for m in whole}
    assert len(found) == len(whole) == len(sent), "some are missing, or there twice"
    assert {key: sorted(one.numbers) for key, one in found.items()} == {order: list(range(SIZE)) for order in sent}
    assert len({m.id for m in whole}) == len(whole)


def judge_others(sent: dict[str, list[int]], seen: list[Any], idle: list[Any]) -> None:
    assert sorted(str(m.key) for m in seen) == sorted(sent)
    assert {str(m.key): decode(m.body, type=Seen).numbers for m in seen} == {o: list(range(SIZE)) for o in sent}
    parts = [(str(m.key), n) for m in idle for n in decode(m.body, type=Whole).numbers]
    assert set(parts) == {(order, n) for order in sent for n in range(SIZE)}
    assert len(parts) <= sum(map(len, sent.values())) + 10 * ROUNDS, "more than what was sent twice"
