"""EIP Messaging Bridge: everything arrives as it was, once around and no further, in order, also through kill -9."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace
from tests.patterns.killing import ROUNDS
from tests.servers import fresh, server
from tests.transports.consuming import until

from tidings import App, Message, Topic, UsageError
from tidings.kernel.errors import InvalidName, InvalidOption
from tidings.kernel.message import new_id
from tidings.kernel.transport import Inspectable
from tidings.patterns import bridge
from tidings.testing.faults import Processes
from tidings.transports.memory import Memory

numbers = Topic("orders.{shop}.placed", int)
near = numbers.bind(shop="near")
OUT, BACK = "edge.bridge-default-far", "edge.bridge-default-far-back"


async def stored(app: App, bus: str, pattern: str = ">") -> list[Message[Any]]:
    """What a bus retains."""
    transport = app.bus(bus)
    assert isinstance(transport, Inspectable)
    return [found.message for found in await transport.peek(pattern, limit=100_000)]


async def handled(app: App, group: str, count: int) -> None:
    await until(lambda: app.stats()[group].handled >= count, f"{group} has handled {count}")


@asynccontextmanager
async def keeping(*names: str) -> AsyncIterator[None]:
    """Shared memory buses that outlive the apps of a test."""
    keepers = [Memory(name=name).transport() for name in names]
    for keeper in keepers:
        await keeper.open(lambda event: None)
    try:
        yield
    finally:
        for keeper in keepers:
            await keeper.close()


# -- what travels


async def test_a_message_stays_what_it_is() -> None:
    app = App("edge", "memory://", far="memory://")
    bridge(app, "orders.>", to="far")
    async with app:
        await app.publish(near, 7, key="k", headers={"tenant": "ü"}, priority=4, expires="1h", id="mine")
        draft: Message[Any] = Message(
            "orders.raw", body=b"\xff\x00", content_type="image/png", type="t", source="camera", correlation_id="c"
        )
        await app.publish(replace(draft, causation_id="why", time=12.5))
        await app.publish(Topic("other.placed", int), 1)
        await handled(app, OUT, 2)
        sent, came = await stored(app, ""), await stored(app, "far")
    assert len(came) == 2
    for before, after in zip(sent, came, strict=False):
        told = dict(after.headers or ())
        assert told.pop("bridge")
        assert dict(before.headers or ()) == told
        assert replace(after, headers=None, bus="") == replace(before, headers=None, bus="")
    assert came[0].id == "mine"
    assert came[1].source == "camera"


async def test_a_topic_brings_its_bus_and_topics_may_be_renamed() -> None:
    app = App("edge", "memory://", far="memory://")
    here = Topic("orders.{shop}.placed", int, bus="far")
    bridge(app, here, to="", rename=lambda topic: f"edge.{topic}")
    async with app:
        await app.publish(here.bind(shop="near"), 1)
        await handled(app, "edge.bridge-far-default", 1)
        (came,) = await stored(app, "")
    assert (came.topic, came.type) == ("edge.orders.near.placed", "orders.{shop}.placed")


async def test_what_rename_makes_is_checked_for_each_message() -> None:
    app = App("edge", "memory://", far="memory://")
    bridge(app, "orders.>", to="far", rename=lambda topic: topic.replace("near", "*"))
    async with app:
        await app.publish_many([near(1), numbers.bind(shop="away")(2)])
        await until(lambda: app.stats()[OUT].dead == 1)
        await handled(app, OUT, 1)
        (letter,) = await stored(app, "", "_dead.>")
        (came,) = await stored(app, "far")
    assert "'orders.*.placed' is a pattern" in letter.header("tdgdetail")
    assert came.topic == "orders.away.placed"


async def test_a_priority_is_kept_where_the_other_bus_has_some(tmp_path: Path) -> None:
    url = server("nats").url
    app = App("edge", "memory://", far=f"{url}{'&' if '?' in url else '?'}namespace={new_id()}")
    bridge(app, "orders.>", to="far")
    async with app:
        await app.publish(near, 1, priority=9, id="urgent")
        await handled(app, OUT, 1)
        (came,) = await stored(app, "far", "orders.>")
    assert (came.id, came.priority) == ("urgent", 0)


# -- where it does not go


async def test_both_ways_never_back() -> None:
    app = App("edge", "memory://", far="memory://")
    bridge(app, "orders.>", to="far", both=True)
    async with app:
        await app.publish(near, 1, id="from here")
        await app.publish(Message("orders.far", data=2, id="from there", bus="far"))
        for group in (OUT, BACK):
            await handled(app, group, 2)
        found = [Counter(m.id for m in await stored(app, bus)) for bus in ("", "far")]
    assert found == [{"from here": 1, "from there": 1}] * 2


async def test_a_ring_of_apps_ends_where_it_began() -> None:
    async with keeping("a", "b", "c"):
        apps = [App(f"to-{to}", f"memory://{at}", far=f"memory://{to}") for at, to in ("ab", "bc", "ca")]
        for app in apps:
            bridge(app, "orders.>", to="far")
        async with apps[0], apps[1], apps[2]:
            await apps[0].publish(near, 1, id="one")
            for app in apps:
                await handled(app, f"{app.name}.bridge-default-far", 1)
            found = [[m.id for m in await stored(app, "")] for app in apps]
    assert found == [["one"]] * 3


async def test_buses_that_are_not_known_again_end_in_the_dead_letters() -> None:
    async with keeping("a", "b"):
        app = App("edge", "memory://a", far="memory://b")
        bridge(app, "orders.>", to="far")
        async with app:
            ring = " ".join(["0123456789ab"] * 8)
            await app.publish_many([near(1, headers={"bridge": ring}), near(2, headers={"bridge": ring[13:]})])
            await until(lambda: app.stats()[OUT].dead == 1)
            await handled(app, OUT, 1)
            (letter,) = await stored(app, "", "_dead.>")
            (came,) = await stored(app, "far")
    assert "8 buses" in letter.header("tdgdetail")
    assert came.body == b"2"
    assert came.header("bridge").startswith(ring[13:])


# -- that it comes


async def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b")]

    def edge() -> App:
        app = App("edge", urls[0], far=urls[1])
        bridge(app, "orders.>", to="far")
        return app

    for first in (0, 100):
        async with (app := edge()):
            await app.publish_many([near(n) for n in range(first, first + 50)])
            await handled(app, OUT, 50)
        async with (app := edge()).connect():
            await app.publish_many([near(n) for n in range(first + 50, first + 100)])
    async with (app := edge()):
        await handled(app, OUT, 50)
        came = [m.body for m in await stored(app, "far")]
    assert came == [str(n).encode() for n in range(200)]


async def test_while_the_other_bus_is_full_it_waits_in_order(tmp_path: Path, caplog: Any) -> None:
    app = App("edge", "memory://", far=f"sqlite:///{tmp_path}/far.db?max_size=64KiB&segment_rows=20&retain=0s")
    bridge(app, "orders.>", to="far")
    seen = defaultdict[str | None, list[int]](list)

    @app.on("orders.>", bus="far", concurrency=1)
    async def see(message: Message[str]) -> None:
        seen[message.key].append(int(message.data.partition(" ")[0]))

    text = "x" * 500
    with caplog.at_level(logging.WARNING):
        async with app:
            app.pause("edge.see")
            await app.publish_many(
                [Message("orders.near.placed", data=f"{n} {text}", key=f"k{n % 7}") for n in range(400)]
            )
            await until(lambda: "a bridge cannot publish, trying again" in caplog.text, "the other bus is full")
            assert app.stats()[OUT].handled < 400
            app.pause("edge.see", False)
            await until(lambda: sum(map(len, seen.values())) >= 400, "all came")
            await handled(app, OUT, 400)
            assert app.stats()[OUT].dead == 0
    for key, came in seen.items():
        assert came == [n for n in range(400) if f"k{n % 7}" == key]


async def test_what_the_other_bus_refuses_is_a_dead_letter_and_its_neighbours_pass() -> None:
    url = server("nats").url
    app = App("edge", "memory://", far=f"{url}{'&' if '?' in url else '?'}namespace={new_id()}")
    bridge(app, "orders.>", to="far")
    async with app:
        large = app.bus("far").capabilities.max_payload
        bodies = [b"1", b"x" * large, b"2", b"3"]
        await app.publish_many([Message("orders.raw", data=body, key="k") for body in bodies])
        await handled(app, OUT, 3)
        came = [m.body for m in await stored(app, "far", "orders.>")]
        (letter,) = await stored(app, "", "_dead.>")
    assert came == [b"1", b"2", b"3"]
    assert len(letter.body) == large
    assert "TDG-E009" in letter.header("tdgdetail")


async def test_one_that_nobody_would_answer_does_not_take_its_neighbours_with_it() -> None:
    app = App("edge", "memory://", far="memory://")
    bridge(app, "orders.>", to="far")
    async with app:
        app.pause(OUT)  # that they go together
        asking: Message[int] = Message("orders.asked", data=2, id="asks", reply_to="answers.here")
        await app.publish_many([near(1), asking, near(3)])
        app.pause(OUT, False)
        await until(lambda: app.stats()[OUT].dead == 1, "nobody answers there")
        await handled(app, OUT, 2)
        assert [m.body for m in await stored(app, "far")] == [b"1", b"3"]
        (letter,) = await stored(app, "", "_dead.>")
        assert letter.id == "asks"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_broker_that_dies_meanwhile_has_all_in_order(tmp_path: Path) -> None:
    each, rounds = 500, 6
    with fresh("nats") as nats:
        app = App("edge", f"sqlite:///{tmp_path}/edge.db", far=nats.url)
        bridge(app, "orders.>", to="far")
        async with app:
            for n in range(rounds):
                await app.publish_many([near(m, key=f"k{m % 7}") for m in range(n * each, (n + 1) * each)])
                await asyncio.to_thread(nats.restart)
            await until(lambda: app.stats()[OUT].handled >= rounds * each, "all were carried", 120.0)
            assert app.stats()[OUT].dead == 0
            there = await stored(app, "far", "orders.>")
            lost = app.events["lost"]
    assert lost, "nothing was on its way when it died"
    assert sorted({int(m.body) for m in there}) == list(range(rounds * each))
    for key in {m.key for m in there}:
        firsts = list(dict.fromkeys(int(m.body) for m in there if m.key == key))
        assert firsts == sorted(firsts), f"{key} is out of order"


# -- that it cannot be


def _wrong(**options: Any) -> None:
    bridge(App("edge", "memory://", far="memory://"), options.pop("pattern", "orders.>"), **options)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"to": "fra"}, InvalidName, "did you mean 'far'?"),
        ({"to": "far", "source": "neer"}, InvalidName, "has no bus 'neer'"),
        ({"to": ""}, InvalidOption, "two buses"),
        ({"to": "far", "pattern": "_dead.>"}, InvalidName, "reserved"),
        ({"to": "far", "pattern": "orders.>.x"}, InvalidName, "no valid pattern"),
        ({"to": "far", "rename": "edge."}, InvalidOption, "a function"),
        ({"to": "far", "rename": str.upper, "both": True}, InvalidOption, "one way"),
        ({"to": "far", "bus": "far"}, InvalidOption, "source=..., to=..."),
        ({"to": "far", "grup": "x"}, InvalidOption, "did you mean 'group'?"),
    ],
)
def test_refused_at_the_line(options: dict[str, Any], kind: type[UsageError], said: str) -> None:
    with pytest.raises(kind) as caught:
        _wrong(**options)
    assert said in str(caught.value)


# -- kill -9


POINTS = ("begin", "commit.before", "commit.after")  # of the file that is read, or of the one that is written


async def carried_through_kills(
    source: str, other: str, rounds: int, seed: int, points: tuple[str, ...] = POINTS, last: int = 12
) -> None:
    """The bridge dies in each round, somewhere in its work; then look at what came."""
    luck, came, deaths, each = Random(seed), list[Message[int]](), 0, 100
    watch = App("watch", source, other=other)

    @watch.on("orders.>", bus="other", start="first", concurrency=1)
    async def see(message: Message[int]) -> None:
        came.append(message)

    async with watch, Processes() as processes:
        for number in range(rounds):
            first = number * each
            await watch.publish_many([near(n, key=f"k{n % 11}", id=f"id-{n}") for n in range(first, first + each)])
            plan = f"{luck.choice(points)}=kill@{luck.randint(2, last)}"
            process = await processes.start("tests.patterns.bridge_worker", source, other, points=plan)
            sent = first + each
            await until(lambda: process.over or len({m.id for m in came}) >= sent, plan, 60.0)  # noqa: B023
            deaths += not process.kill()
            await process.wait()
        process = await processes.start("tests.patterns.bridge_worker", source, other)
        await until(lambda: len({m.id for m in came}) >= rounds * each, "all came", 300.0)
        await process.line("ready")
        process.terminate()
        assert await process.wait() == 0
    assert deaths > rounds / 4, "it did not die while it worked"
    assert {m.id: m.data for m in came} == {f"id-{n}": n for n in range(rounds * each)}
    for key in {m.key for m in came}:
        firsts = list(dict.fromkeys(m.data for m in came if m.key == key))
        assert firsts == sorted(firsts), f"{key} is out of order"


def two_files(folder: Path) -> tuple[str, str]:
    return f"sqlite:///{folder}/source.db", f"sqlite:///{folder}/other.db"


async def test_killed_it_loses_nothing(tmp_path: Path) -> None:
    await carried_through_kills(*two_files(tmp_path), rounds=4, seed=1, last=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_killed_many_times_it_loses_nothing(tmp_path: Path) -> None:
    await carried_through_kills(*two_files(tmp_path), rounds=ROUNDS, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_on_its_way_to_a_broker_it_loses_nothing(tmp_path: Path) -> None:
    url = server("nats").url
    other = f"{url}{'&' if '?' in url else '?'}namespace={new_id()}"
    await carried_through_kills(
        two_files(tmp_path)[0],
        other,
        rounds=ROUNDS,
        seed=3,
        points=(*POINTS, "publish.before", "publish.after"),
        last=8,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_on_its_way_from_a_database_it_loses_nothing(tmp_path: Path) -> None:
    url = server("postgres").url
    source = f"{url}{'&' if '?' in url else '?'}namespace=b{new_id().replace('-', '')}"
    await carried_through_kills(source, two_files(tmp_path)[1], rounds=ROUNDS, seed=4, last=8)
