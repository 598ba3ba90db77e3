"""EIP Channel Adapter for databases: each row once, in order, by a watermark that outlives the process."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.patterns.killing import ROUNDS
from tests.patterns.sql_worker import QUERY, Order, placed
from tests.servers import server
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidOption, Unsupported
from tidings.kernel.message import new_id
from tidings.patterns import poll_sql
from tidings.testing.faults import Processes


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, article TEXT, cents REAL)")
        connection.commit()
        yield connection


def add(connection: sqlite3.Connection, *articles: str | None) -> None:
    with connection:
        connection.executemany("INSERT INTO orders (article) VALUES (?)", [(article,) for article in articles])


def polling(url: str, path: Path, **options: Any) -> tuple[App, list[Message[Any]]]:
    app, came = App("office", url), list[Message[Any]]()
    more = {"connect": lambda: sqlite3.connect(path), "query": QUERY, "every": "10ms", **options}
    poll_sql(app, placed, **more)

    @app.on("orders.>", concurrency=1)
    async def see(message: Message[Any]) -> None:
        came.append(message)

    return app, came


@pytest.mark.parametrize("bus", ["memory", "sqlite"])
async def test_each_row_once_also_after_a_restart(bus: str, tmp_path: Path) -> None:
    url, path = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/bus.db"}[bus], tmp_path / "shop.db"
    with database(path) as rows:
        add(rows, "tea", "cup")
        app, came = polling(url, path)
        async with app:
            await until(lambda: len(came) == 2, "both came")
            add(rows, "pot")
            await until(lambda: len(came) == 3, "the next came")
        if bus == "sqlite":
            add(rows, "jar")
            app, after = polling(url, path)
            async with app:
                await until(lambda: after, "it goes on")
            came += after
    assert [message.data for message in came] == [
        {"id": n, "article": article} for n, article in enumerate(("tea", "cup", "pot", "jar")[: len(came)], 1)
    ]
    assert len({message.id for message in came}) == len(came)


async def test_more_than_one_look_takes_and_what_row_makes(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with database(path) as rows:
        add(rows, *(f"a{n}" for n in range(2500)))
    made = Topic("orders.{article}.placed", int)
    app, came = polling(
        "memory://", path, row=lambda row: made.bind(article=row["article"])(row["id"], key="k"), start=2
    )
    async with app:
        await until(lambda: len(came) == 2498, "all came")
    assert (came[0].topic, came[0].data, came[0].key) == ("orders.a2.placed", 3, "k")
    assert [message.data for message in came] == list(range(3, 2501))


async def test_the_id_comes_from_the_watermark(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with database(tmp_path / "shop.db") as rows:
            add(rows, "tea")
        app, came = polling("memory://", tmp_path / "shop.db")
        async with app:
            await until(lambda: came, "it came")  # noqa: B023
        ids.append(came[0].id)
    assert ids[0] == ids[1]


async def test_apps_that_share_a_store_have_a_watermark_each(tmp_path: Path) -> None:
    came, url = list[Message[Any]](), f"sqlite:///{tmp_path}/bus.db"
    apps = [App(name, url) for name in ("near", "far")]
    for app in apps:
        path = tmp_path / f"{app.name}.db"
        poll_sql(app, placed, connect=partial(sqlite3.connect, path), query=QUERY, every="10ms")
        with database(path) as rows:
            add(rows, *(f"{app.name} {n}" for n in range(3 if app.name == "near" else 1)))

    @apps[0].on("orders.>")
    async def see(message: Message[Any]) -> None:
        came.append(message)

    async with apps[0], apps[1]:
        await until(lambda: len(came) == 4, "all of both came")
    assert len({message.id for message in came}) == 4


async def test_a_row_that_does_not_fit_stops_it_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "shop.db"
    with database(path) as rows, caplog.at_level(logging.ERROR):
        add(rows, "tea", None, "cup")
        app, came = polling("memory://", path)
        async with app:
            await until(lambda: "stops at 2" in caplog.text, "the log says so")
            await until(lambda: len(came) == 1, "the one before came")
            with rows:
                rows.execute("UPDATE orders SET article = 'pot' WHERE id = 2")
            await until(lambda: len(came) == 3, "mended, it goes on")
    assert [message.data["article"] for message in came] == ["tea", "pot", "cup"]


async def test_a_database_that_is_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "shop.db"
    app, came = polling("memory://", path)
    async with app:
        await until(lambda: "got no answer" in caplog.text, "it has noticed")
        with database(path) as rows:
            add(rows, "tea")
        await until(lambda: came, "it came")
        assert app.stats()["office.poll-orders%2Eplaced"].failed == 0


async def test_postgres(tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    url = server("postgres").url
    table = f"orders_{new_id().replace('-', '_')}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {table} (at timestamptz PRIMARY KEY, article text, id int)")
        connection.execute(
            f"INSERT INTO {table} SELECT now() - n * interval '1 s', 'a' || n, n FROM generate_series(1, 30) n"
        )
        query = f"SELECT at, article, id FROM {table} WHERE at > %s ORDER BY at LIMIT 7"
        app, came = polling(
            "memory://", tmp_path, connect=lambda: psycopg.connect(url), query=query, start="2000-01-01T00:00:00Z"
        )
        async with app:
            await until(lambda: len(came) == 30, "all came")
        connection.execute(f"DROP TABLE {table}")
    assert [message.data["article"] for message in came] == [f"a{n}" for n in range(30, 0, -1)]


async def test_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="rows cannot be published"):
        poll_sql(App("office", "memory://"), Topic("orders.{x}", Order), connect=lambda: None, query="")
    with pytest.raises(InvalidOption, match="rows cannot be published"):
        poll_sql(App("office", "memory://"), placed, connect="shop.db", query="")  # type: ignore[arg-type]
    app, _ = polling(server("nats").url, tmp_path)
    with pytest.raises(Unsupported):
        async with app:
            pass


async def through_kills(folder: Path, rounds: int, seed: int) -> None:
    """The poller dies in each round; then look at what came."""
    luck, url, path, deaths, each = Random(seed), f"sqlite:///{folder}/bus.db", folder / "shop.db", 0, 1500
    office, came = App("office", url), list[Message[Order]]()

    @office.on(placed, concurrency=1)
    async def see(message: Message[Order]) -> None:
        came.append(message)

    with database(path) as rows:
        async with office, Processes() as processes:
            for number in range(rounds):
                add(rows, *(f"a{n}" for n in range(number * each, (number + 1) * each)))
                plan = f"{luck.choice(('begin', 'commit.before', 'commit.after'))}=kill@{luck.randint(2, 20)}"
                process = await processes.start("tests.patterns.sql_worker", url, str(path), points=plan)
                await until(lambda: process.over or len(came) >= (number + 1) * each, plan, 60.0)  # noqa: B023
                deaths += not process.kill()
                await process.wait()
            process = await processes.start("tests.patterns.sql_worker", url, str(path))
            await process.line("ready")
            await until(lambda: len(came) >= rounds * each, "all came", 60.0)
    assert deaths > rounds / 2, "it did not die while it worked"
    assert [message.data.article for message in came] == [f"a{n}" for n in range(rounds * each)], "each once, in order"


async def test_killed_it_publishes_each_row_once(tmp_path: Path) -> None:
    await through_kills(tmp_path, rounds=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_many_times(tmp_path: Path) -> None:
    await through_kills(tmp_path, rounds=ROUNDS, seed=2)
