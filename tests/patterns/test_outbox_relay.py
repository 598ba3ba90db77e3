"""The relay: in the order of the commits, key by key, through failures of either side, and one at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec import Struct
from msgspec.structs import replace
from opentelemetry.sdk.trace import TracerProvider
from tests.patterns.outboxes import connected, in_postgres, in_sqlite, place_in, placed, shop
from tests.servers import fresh
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import BusError, DuplicateGroup, InvalidName, InvalidOption
from tidings.kernel.transport import Failure
from tidings.middleware import instrument
from tidings.middleware.trace import Trace
from tidings.outbox import Outbox
from tidings.outbox.postgres import PostgresRows
from tidings.outbox.publishing import waves
from tidings.outbox.rows import Table, place_of
from tidings.outbox.sqlite import SQLiteRows
from tidings.transports.memory import Memory, MemoryTransport

BLOB = Topic("orders.scan", bytes)
LARGE = b"x" * (16 * 2**20)


def fill(place: str, outbox: Outbox, *drafts: Message[Any]) -> None:
    with closing(connected(place)) as con:
        outbox.add(con, *drafts)
        con.commit()


def numbers(seen: list[Message[Any]], key: str | None = None) -> list[int]:
    return [message.data["n"] for message in seen if key is None or message.key == key]


# -- order


@pytest.mark.parametrize("batch", [1, 7, 500])
async def test_in_order_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    await outbox.create()
    fill(place, outbox, *(placed({"n": n}, key=f"k{n % 3}") for n in range(100)))
    app, seen = shop(outbox, batch=batch)
    async with app:
        await until(lambda: len(seen) == 100)
    assert numbers(seen) == list(range(100))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_many_bytes_are_several_turns(kind: str, tmp_path: Path) -> None:
    async with place_in(kind, tmp_path) as place:
        outbox = Outbox(place)
        await outbox.create()
        fill(place, outbox, *(BLOB(b"%d" % n + bytes(5 * 2**20)) for n in range(5)))
        table, sizes = Table("tidings_outbox", place_of(place)), list[int]()
        async with SQLiteRows(table, False) if kind == "sqlite" else PostgresRows(table) as rows:
            for _ in range(4):
                async with rows.turn(500, ()) as turn:
                    if turn is not None:
                        sizes.append(len(turn.rows))
                        await turn.finish([row.position for row in turn.rows], [])
    assert [size for size in sizes if size] == [2, 2, 1]


async def test_the_order_is_that_of_the_commits() -> None:
    """Whoever inserted first commits last; both are there when the relay comes."""
    async with in_postgres() as place:
        outbox = Outbox(place)
        await outbox.create()
        one, two = await asyncpg.connect(place), await asyncpg.connect(place)
        late, early = one.transaction(), two.transaction()
        await late.start()
        await early.start()
        await outbox.add_async(one, placed({"n": 3}, key="k"), placed({"n": 4}, key="k"))
        await outbox.add_async(two, placed({"n": 1}, key="k"), placed({"n": 2}, key="k"))
        await early.commit()
        await late.commit()
        await one.close()
        await two.close()
        app, seen = shop(outbox)
        async with app:
            await until(lambda: len(seen) == 4)
    assert numbers(seen) == [1, 2, 3, 4]


async def test_a_long_transaction_holds_back_nobody_and_is_not_skipped() -> None:
    async with in_postgres() as place:
        outbox = Outbox(place)
        await outbox.create()
        app, seen = shop(outbox)
        long, short = await asyncpg.connect(place), await asyncpg.connect(place)
        transaction = long.transaction()
        await transaction.start()
        await outbox.add_async(long, placed({"n": 0}, key="k"), placed({"n": 1}))
        async with app:
            for n in range(2, 50):
                async with short.transaction():
                    await outbox.add_async(short, placed({"n": n}, key="k"))
            await until(lambda: len(seen) == 48)
            await transaction.commit()
            await until(lambda: len(seen) == 50)
        await long.close()
        await short.close()
    assert numbers(seen)[:48] == list(range(2, 50))
    assert sorted(numbers(seen)) == list(range(50))


async def test_savepoints_that_are_rolled_back() -> None:
    async with in_postgres() as place:
        outbox = Outbox(place)
        await outbox.create()
        con = await asyncpg.connect(place)
        async with con.transaction():
            await outbox.add_async(con, placed({"n": 1}, key="k"))
            with suppress(asyncpg.DivisionByZeroError):
                async with con.transaction():
                    await outbox.add_async(con, placed({"n": 2}, key="k"))
                    await con.execute("SELECT 1 / 0")
            await outbox.add_async(con, placed({"n": 3}, key="k"))
        await con.close()
        app, seen = shop(outbox)
        async with app:
            await until(lambda: len(seen) == 2)
    assert numbers(seen) == [1, 3]


def test_waves_have_each_key_once() -> None:
    drafts = [placed({"n": n}, key=key, id=f"m{n}") for n, key in enumerate(["a", "b", "a", None, "a", "b", None])]
    found = waves(enumerate(drafts))
    assert [[position for position, _ in wave] for wave in found] == [[0, 1, 3, 6], [2, 5], [4]]


# -- several relays, and coming and going


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_replicas_share_the_work_and_nothing_is_published_twice(kind: str, tmp_path: Path) -> None:
    """Apps with a relay come and go while rows are written; each ends in the middle of its work."""
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(place_in(kind, tmp_path))
        outbox, written, url = Outbox(place), Counter[str](), f"sqlite:///{tmp_path / 'bus.db'}"
        await outbox.create()
        watch = App("watch", url)
        await stack.enter_async_context(watch.connect())

        def write() -> None:
            for _ in range(60):
                drafts = [placed({"n": written[key] + i}, key=key) for key in "abc" for i in range(5)]
                written.update(dict.fromkeys("abc", 5))
                fill(place, outbox, *drafts)

        async def replica(number: int) -> None:
            while not writing.done() or await outbox.pending():
                app = App(f"relay{number}", url)
                outbox.relay(app, batch=10)
                async with app:
                    await asyncio.sleep(0.2)

        writing = asyncio.create_task(asyncio.to_thread(write))
        await asyncio.gather(writing, *(replica(number) for number in range(3)))
        bus: Any = watch.bus()
        came = [stored.message for stored in await bus.peek("orders.placed", limit=10_000)]
    assert len({message.id for message in came}) == len(came) == 900
    for key in "abc":
        assert [message.body for message in came if message.key == key] == [b'{"n":%d}' % n for n in range(300)]
    assert len({message.source for message in came}) > 1, "one did it all"


async def test_it_is_told_of_commits() -> None:
    """PostgreSQL tells: nobody waits for the next look."""
    async with in_postgres() as place:
        outbox, con = Outbox(place), await asyncpg.connect(place)
        await outbox.create()
        async with PostgresRows(Table("tidings_outbox", place_of(place))) as rows:
            told = asyncio.create_task(rows.news(3600))
            async with asyncio.timeout(30):
                while not told.done():  # it listens soon
                    async with con.transaction():
                        await outbox.add_async(con, placed({"n": 1}))
                    await asyncio.wait({told}, timeout=0.1)
        await con.close()


async def test_a_group_that_is_new_misses_nothing(tmp_path: Path) -> None:
    """The relay was declared first, and begins last."""
    place = in_sqlite(tmp_path)
    outbox, seen = Outbox(place), list[Any]()
    await outbox.create()
    fill(place, outbox, placed({"n": 1}))
    app = App("shop", f"sqlite:///{tmp_path / 'bus.db'}")
    outbox.relay(app)
    for number in range(20):

        @app.on(placed, group=f"shop.see{number}")
        async def see(order: dict[str, Any]) -> None:
            seen.append(order)

    async with app:
        await until(lambda: len(seen) == 20)


# -- failures


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_no_bus_will_take_is_set_aside(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = Topic("orders.placed", dict[str, Any], bus="nowhere")
    async with place_in(kind, tmp_path) as place:
        outbox = Outbox(place)
        await outbox.create()
        drafts = placed({"n": 1}, key="k"), BLOB(LARGE, key="k"), placed({"n": 2}, key="k"), nowhere({"n": 3})
        fill(place, outbox, *drafts)
        app, seen = shop(outbox)
        async with app:
            await until(lambda: len(seen) == 2)
        assert numbers(seen) == [1, 2]
        assert (await outbox.pending(), await outbox.refused()) == (0, 2)
        with closing(connected(place)) as con:
            reasons = con.execute("SELECT refused FROM tidings_outbox ORDER BY topic").fetchall()
            assert [why[:8] for (why,) in reasons] == ["TDG-E001", "TDG-E009"]
            con.execute("UPDATE tidings_outbox SET body = 'small' WHERE topic = 'orders.scan'")
            con.commit()
        assert caplog.text.count("sets a message aside") == 2
        assert await outbox.retry() == 2
        app, seen = shop(outbox)
        async with app:
            await until(lambda: len(seen) == 1)
        assert seen[0].data == b"small"
        assert (await outbox.pending(), await outbox.refused()) == (0, 1)


async def test_a_bus_that_is_full_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost, doubled or out of order when it has room again."""
    place, url = in_sqlite(tmp_path), f"sqlite:///{tmp_path / 'bus.db'}?max_size=64KiB&segment_rows=20&retain=0s"
    outbox = Outbox(place)
    await outbox.create()
    fill(place, outbox, *(placed({"n": n, "more": "x" * 500}, key=f"k{n % 5}") for n in range(500)))
    app, seen = shop(outbox, url)  # a turn has more than the bus has room for
    async with app:
        app.pause("shop.see")
        await until(lambda: "TDG-E025" in caplog.text)
        app.pause("shop.see", False)
        await until(lambda: len(seen) == 500, within=60)
    assert numbers(seen) == list(range(500))
    assert await outbox.refused() == 0


async def test_a_connection_that_is_lost_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    async with in_postgres() as place:
        outbox = Outbox(place)
        await outbox.create()
        app, seen = shop(outbox)
        con = await asyncpg.connect(place)
        async with app:
            for n in range(3):
                async with con.transaction():
                    await outbox.add_async(con, placed({"n": n}))
                await until(lambda: len({message.id for message in seen}) == n + 1)  # noqa: B023
                others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                ended = await con.fetchval(f"{others} WHERE datname = current_database() AND pid <> pg_backend_pid()")
                assert ended > 0
        await con.close()
    assert "outbox tidings_outbox waits" in caplog.text


class Partly(Struct, frozen=True):
    """Options of a bus that accepts a part of what is published at once, and does not always know which.

    ``share``: of messages that fail; ``never``: the topic of those that always do.
    """

    share: float
    never: str = ""

    @classmethod
    def from_url(cls, url: str) -> Partly:
        return cls(0.05)

    def transport(self) -> Any:
        return PartlyTransport(Memory().transport(), self)


class PartlyTransport:
    def __init__(self, inner: MemoryTransport, options: Partly) -> None:
        self.inner, self.options, self.chance = inner, options, random.Random(5)
        self.capabilities = replace(inner.capabilities, publish_atomic=False)
        self.told = Counter[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        failures = list[Failure]()
        for index, message in enumerate(messages):
            fails = message.topic == self.options.never or self.chance.random() < self.options.share
            kind = self.chance.choice(["rejected", "unknown", "unknown, but stored"]) if fails else ""
            if not kind or kind.endswith("stored"):
                await self.inner.publish([message])
            if kind:
                self.told[kind] += len(messages) > 1
                kind = kind.partition(",")[0]
                failures.append(Failure(index, kind, BusError("try again")))  # type: ignore[arg-type]
        return failures


async def test_each_key_keeps_its_order_when_a_part_is_accepted(tmp_path: Path) -> None:
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    await outbox.create()
    fill(place, outbox, *(placed({"n": n // 20}, key=f"k{n % 20}") for n in range(600)))
    app, seen = shop(outbox, Partly(0.05))
    async with app:
        await until(lambda: len({message.id for message in seen}) == 600, within=90)
        assert min(app.bus().told.values()) > 2  # type: ignore[attr-defined]
        assert len(app.bus().told) == 3  # type: ignore[attr-defined]
    first = list({message.id: message for message in seen}.values())
    for key in range(20):
        assert numbers(first, f"k{key}") == list(range(30))
    assert (await outbox.pending(), await outbox.refused()) == (0, 0)


async def test_a_key_that_waits_is_in_nobody_s_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even when its messages would fill whole turns."""
    place, stuck = in_sqlite(tmp_path), Topic("orders.stuck", dict[str, Any])
    outbox = Outbox(place)
    await outbox.create()
    fill(place, outbox, *(stuck({"n": n}, key="stuck") for n in range(10)), stuck({"n": 10}))
    fill(place, outbox, *(placed({"n": n}, key="k") for n in range(10)))
    app, seen = shop(outbox, Partly(0, "orders.stuck"), batch=2)

    def passed() -> list[int]:
        return numbers([message for message in seen if message.topic == "orders.placed"])

    async with app:
        await until(lambda: len(passed()) == 10)
    assert passed() == list(range(10))
    assert await outbox.pending() == 11
    assert "holds 1 keys back: TDG-E020: try again" in caplog.text


@pytest.mark.slow
async def test_a_broker_that_is_killed_while_it_accepts_a_part(tmp_path: Path) -> None:
    """NATS accepts some of what is published at once: each key keeps its order all the same."""
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    await outbox.create()
    fill(place, outbox, *(placed({"n": n // 20}, key=f"k{n % 20}") for n in range(8000)))
    with fresh("nats") as server:
        app, seen = App("shop", f"{server.url}?publish_wait=2s"), list[Message[Any]]()
        outbox.relay(app, batch=200)

        @app.on("orders.>", concurrency=1)
        async def see(data: Any, message: Message[Any]) -> None:
            seen.append(message)

        async with app:
            for count in (500, 2500, 5000):
                await until(lambda: len(seen) >= count, within=60)  # noqa: B023
                assert await outbox.pending() > 0
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
            await until(lambda: len({message.id for message in seen}) == 8000, within=60)
            bus: Any = app.bus()
            stored, position = list[Message[Any]](), 0
            while found := await bus.peek("orders.placed", after=position, limit=1000):
                stored += (each.message for each in found)
                position = found[-1].position
    first = list({message.id: message for message in stored}.values())
    for key in range(20):
        assert [m.body for m in first if m.key == f"k{key}"] == [b'{"n":%d}' % n for n in range(400)]


async def test_the_bus_of_the_environment_may_be_the_outbox_s_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which only shows when the app is open."""
    url = f"sqlite:///{tmp_path / 'bus.db'}"
    outbox, app = Outbox(url), App("shop", "memory://")
    outbox.relay(app)
    monkeypatch.setenv("TIDINGS_URL", url)
    async with app:
        await until(lambda: "is a bus of 'shop'" in caplog.text)


async def test_it_is_no_cause_of_what_it_publishes(tmp_path: Path) -> None:
    """Messages would all be of one trace, that of a tick which lasts as long as the app."""
    place = in_sqlite(tmp_path)
    outbox = Outbox(place)
    await outbox.create()
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    fill(place, outbox, placed({"n": 1}), placed({"n": 2}, headers={"traceparent": given}))
    app, seen = shop(outbox)
    instrument(app, Trace(TracerProvider()))
    async with app:
        await until(lambda: len(seen) == 2)
    assert [message.header("traceparent") for message in seen] == ["", given]


# -- what is refused when it is declared


def refusals() -> list[Callable[[Outbox, App], Any]]:
    return [
        lambda outbox, app: outbox.relay(app, batch=0),
        lambda outbox, app: outbox.relay(app, poll="soon"),
        lambda outbox, app: outbox.relay(app, bus="nowhere"),
        lambda outbox, app: [outbox.relay(app), outbox.relay(app)],
    ]


@pytest.mark.parametrize("number", range(4))
def test_what_is_refused(number: int) -> None:
    wrong = [InvalidOption, InvalidOption, InvalidName, DuplicateGroup][number]
    with pytest.raises(wrong) as error:
        refusals()[number](Outbox("sqlite:///app.db"), App("shop", "memory://"))
    assert error.value.mend


async def test_further_buses(tmp_path: Path) -> None:
    """Topics that name a bus go there, the others where the relay says."""
    place = in_sqlite(tmp_path)
    outbox, seen = Outbox(place), list[tuple[str, int]]()
    await outbox.create()
    far = Topic("orders.far", int, bus="far")
    fill(place, outbox, placed({"n": 1}), far(2))
    app = App("shop", "memory://", far="memory://", near="memory://")

    @app.on(far)
    async def from_far(n: int) -> None:
        seen.append(("far", n))

    @app.on("orders.placed", bus="near")
    async def from_near(order: dict[str, Any]) -> None:
        seen.append(("near", order["n"]))

    outbox.relay(app, bus="near")
    async with app:
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == [("far", 2), ("near", 1)]


async def test_ends_quietly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening and closing without anything to do, and at once, leaves no task, thread or warning behind."""
    outbox = Outbox(in_sqlite(tmp_path))
    await outbox.create()
    with caplog.at_level(logging.WARNING):
        for seconds in (0, 0.06, 0.2):
            app, _ = shop(outbox)
            async with app:
                await asyncio.sleep(seconds)
    assert caplog.text == ""
    assert len(asyncio.all_tasks()) == 1
