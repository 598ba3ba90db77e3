"""Resequencer: out in order, once; gaps are given up by time or capacity, and told; no crash loses what waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.json import decode
from tests.patterns.killing import KINDS, Killing, url_of
from tests.patterns.resequencer_worker import Part, ordered, parts
from tests.state.stores import STORES
from tests.state.stores import url_of as store_url
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Router, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import resequencer, sequenced

each_store = pytest.mark.parametrize("kind", STORES)
GROUP = "shop.resequencer_parts"


def by(part: Part) -> str:
    return part.stream


def number(part: Part) -> int:
    return part.n


def listen(app: App) -> list[Message[Part]]:
    came: list[Message[Part]] = []

    @app.on(ordered, concurrency=1)
    async def heard(message: Message[Part]) -> None:
        came.append(message)

    return came


def shop(kind: str, folder: Path) -> App:
    return App("shop", store_url(kind, folder), breaker=None, backoff=Backoff(attempts=2, first=0.01))


async def tables(app: App) -> dict[str, int]:
    bus: Any = app.bus()
    return {t.name.rpartition(".")[2]: t.records for t in await bus.tables() if t.name != "_leases"}


async def letters(app: App, count: int) -> list[tuple[str, str]]:
    """Ids and reasons of all dead letters, once there are so many."""
    bus: Any = app.bus()
    async with asyncio.timeout(20):
        while len(found := await bus.peek(f"_dead.{GROUP}", limit=1000)) < count:  # noqa: ASYNC110  # a bus tells nobody
            await asyncio.sleep(0.01)
    return [(stored.message.id, stored.message.header("tdgreason")) for stored in found]


def part(n: int, stream: str = "a") -> Message[Part]:
    return parts(Part(stream, n), id=f"{stream}{n}")


@each_store
async def test_each_stream_goes_on_in_order(kind: str, tmp_path: Path) -> None:
    app, luck = shop(kind, tmp_path), Random(1)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number)
    sent = [part(n, stream) for n in range(100) for stream in ("a", "b/", "")]
    luck.shuffle(sent)
    async with app:
        for first in range(0, 300, 40):
            await app.publish_many(sent[first : first + 40])
        await until(lambda: len(came) == 300)
        assert await tables(app) == {"streams": 3}
        assert await letters(app, 0) == []
    for stream in ("a", "b/", ""):
        assert [m.data.n for m in came if m.key == stream] == list(range(100))
    assert not any(m.headers for m in came)
    assert len({m.id for m in came}) == 300


@each_store
async def test_what_waits_is_written_and_comes_as_it_was(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, start=5)
    async with app:
        waits = parts(Part("a", 6, "ä"), headers={"x": "1"}, priority=3, id="six", key="another")
        await app.publish_many([waits, part(8), part(7)])
        await until(lambda: app.stats()[GROUP].handled == 3)
        assert (came, await tables(app)) == ([], {"streams": 1, "waiting": 3})
        await app.publish(part(5))
        await until(lambda: len(came) == 4)
        assert await tables(app) == {"streams": 1}
    assert [m.data.n for m in came] == [5, 6, 7, 8]
    six = came[1]
    assert (six.data.text, six.headers, six.priority, six.key) == ("ä", (("x", "1"),), 0, "a")
    assert (six.type, six.correlation_id) == ("ordered", "six")


@each_store
async def test_a_message_sequence_needs_no_functions(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered)
    sent = sequenced([part(n) for n in range(10)], "s1")
    async with app:
        await app.publish_many([*sent[::-1], part(99)])
        await until(lambda: len(came) == 10 and app.stats()[GROUP].dead == 1)
    assert [m.data.n for m in came] == list(range(10))
    assert came[3].header("sequence-number") == "3"


@each_store
@pytest.mark.parametrize("late", ["drop", "dead"])
async def test_what_comes_twice_or_too_late(kind: str, late: Any, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, late=late)
    async with app:
        await app.publish_many([part(0), part(0), part(2), part(2)])
        await until(lambda: app.stats()[GROUP].handled == 4)
        await app.publish_many([part(2), part(1), part(1), part(3)])
        await until(lambda: len(came) == 4)
        late_ones = [("a0", "late"), ("a1", "late")] if late == "dead" else []
        assert await letters(app, len(late_ones)) == late_ones
    assert [m.data.n for m in came] == [0, 1, 2, 3]


@each_store
async def test_a_gap_is_given_up_in_time_and_told(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, gap="150ms")
    async with app:
        await app.publish_many([part(n) for n in (0, 3, 4, 6)])
        await until(lambda: len(came) == 4)
        await app.publish_many([part(n) for n in (2, 7)])
        await until(lambda: len(came) == 5)
    told = [(m.data.n, m.header("sequence-gap")) for m in came]
    assert told == [(0, ""), (3, "2"), (4, ""), (6, "1"), (7, "")]


@each_store
async def test_or_what_waited_for_it_is_dead(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, gap="150ms", missing="dead")
    async with app:
        await app.publish_many([part(n) for n in (0, 3, 4)])
        await letters(app, 2)
        await app.publish(part(5))
        await until(lambda: len(came) == 2)
        assert await letters(app, 2) == [("a3", "gap"), ("a4", "gap")]
    assert [m.data.n for m in came] == [0, 5]


@each_store
async def test_more_than_may_wait_give_it_up(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, capacity=3, gap="1h")
    async with app:
        await app.publish_many([part(n) for n in (0, 2, 3, 5, 6, 8)])
        await until(lambda: len(came) == 3)
        await app.publish_many([part(4)])
        await until(lambda: len(came) == 6)
        assert await tables(app) == {"streams": 1, "waiting": 1}
    told = [(m.data.n, m.header("sequence-gap")) for m in came]
    assert told == [(0, ""), (2, "1"), (3, ""), (4, ""), (5, ""), (6, "")]


@each_store
async def test_a_stream_is_forgotten(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number, forget="100ms")
    async with app:
        await app.publish_many([part(0), part(1)])
        await until(lambda: len(came) == 2)
        async with asyncio.timeout(20):
            while await tables(app):  # noqa: ASYNC110  # a bus tells nobody
                await asyncio.sleep(0.01)
        await app.publish(part(0))
        await until(lambda: len(came) == 3)


async def test_a_number_that_is_none_is_a_dead_letter(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    came = listen(app)
    wrong: Any = lambda part: "one" if part.n == 1 else part.n  # noqa: E731
    resequencer(app, parts, to=ordered, by=by, number=wrong, gap="50ms")
    async with app:
        await app.publish_many([part(n) for n in range(3)])
        await until(lambda: len(came) == 2 and app.stats()[GROUP].dead == 1)
        assert [id for id, _ in await letters(app, 1)] == ["a1"]


@each_store
async def test_two_processes_share_the_streams(kind: str, tmp_path: Path) -> None:
    url, luck = store_url(kind, tmp_path), Random(2)
    apps = [App("shop", url, breaker=None), App("shop", url, breaker=None)]
    came = listen(apps[0])
    for app in apps:
        resequencer(app, parts, to=ordered, by=by, number=number)
    sent = [part(n, stream) for n in range(100) for stream in ("a", "b", "c", "d")]
    for first in range(0, 400, 50):
        some = sent[first : first + 50]
        luck.shuffle(some)
        sent[first : first + 50] = some
    async with apps[0] as app, apps[1]:
        for turn, first in enumerate(range(0, 400, 20)):
            for n, one in enumerate(apps):  # one, the other, both
                one.pause(GROUP, turn % 3 == n)
            await app.publish_many(sent[first : first + 20])
            await until(lambda: sum(a.stats()[GROUP].handled for a in apps) >= first + 20)  # noqa: B023
        for one in apps:
            one.pause(GROUP, False)
        await until(lambda: len(came) >= 400 and sum(a.stats()[GROUP].handled for a in apps) == 400)
        assert await tables(app) == {"streams": 4}
        assert all(a.stats()[GROUP].handled for a in apps), "one had nothing to do"
    for stream in "abcd":
        assert [m.data.n for m in came if m.key == stream] == list(range(100))


@pytest.mark.parametrize("beside", ["nats", "redis"])
async def test_beside_a_bus_that_keeps_no_records(beside: str, tmp_path: Path) -> None:
    from tests.conformance.engines import engine_bus

    app = App("shop", engine_bus(beside).options(2.0), state=f"sqlite:///{tmp_path / 'state.db'}")
    came = listen(app)
    resequencer(app, parts, to=ordered, by=by, number=number)
    async with app:
        await app.publish_many([part(n) for n in (3, 1, 2)])
        await app.publish_many([part(n) for n in (0, 5, 4)])
        await until(lambda: len(came) == 6)
    assert [m.data.n for m in came] == list(range(6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": by}, "belong together"),
        ({"number": number}, "belong together"),
        ({"by": by, "number": "n"}, "number cannot be 'n'"),
        ({"gap": 0}, "gap cannot be 0"),
        ({"capacity": 0}, "capacity cannot be 0"),
        ({"start": "first"}, "start cannot be 'first'"),
        ({"missing": "drop"}, "missing cannot be 'drop'"),
        ({"late": "new"}, "late cannot be 'new'"),
        ({"capasity": 7}, "did you mean 'capacity'"),
        ({"to": Topic("ordered.{n}", Part)}, "to cannot be"),
    ],
)
def test_refused_at_the_line(options: dict[str, Any], said: str) -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match=said):
        resequencer(app, parts, **{"to": ordered, **options})
    assert app.registrations == []


def test_a_router_has_no_name_to_keep_records_by() -> None:
    with pytest.raises(InvalidOption, match="needs a group="):
        resequencer(Router(), parts, to=ordered)


# -- kill -9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_random_it_keeps_the_order_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    luck, waiting, sent = Random(3), list[tuple[str, int]](), 0
    async with Killing("tests.patterns.resequencer_worker", url_of(kind, tmp_path)) as killing:
        bus: Any = killing.app.bus()

        async def publish(some: list[tuple[str, int]]) -> None:
            messages = [parts(Part(stream, n, "x" * (n % 90)), id=f"{stream}/{n}") for stream, n in some]
            await killing.app.publish_many(messages)

        async def feed(round: int) -> None:
            """Each stream in any order, some parts rounds later, some twice."""
            nonlocal sent
            waiting.extend((f"s{k}", round * 15 + n) for k in range(10) for n in range(15))
            luck.shuffle(waiting)
            now = [waiting.pop() for _ in range(len(waiting) // 2)]
            sent = (round + 1) * 15
            await publish([*now, *now[:10]])

        async def last(round: int) -> None:
            await publish(waiting)

        async def look() -> int:
            return sum(t.records for t in await bus.tables() if t.name == f"{GROUP}.waiting")

        seen = await killing.rounds(feed, killing.idle, look, hit=True)
        assert any(seen), "nothing waited when it died"
        await killing.rounds(last, killing.idle, look, count=1)
        came = [decode(m.body, type=Part) for m in await killing.log("ordered")]
        assert await look() == 0
        assert await killing.log("_dead.>") == []
    for k in range(10):
        assert [p.n for p in came if p.stream == f"s{k}"] == list(range(sent))
    assert len(came) == 10 * sent
