"""Writers and relays of an outbox are killed at random: nothing is lost, nothing made up, each key keeps its order."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from tests.patterns.killing import ROUNDS
from tests.patterns.outbox_worker import KEYS, TABLES
from tests.patterns.outboxes import in_postgres, in_sqlite
from tests.servers import fresh

from tidings import App, Message
from tidings.outbox import Outbox
from tidings.testing.faults.process import Process, Processes

KILLS = max(ROUNDS, 20)  # fewer may all miss: half of the relays die by themselves, with rows in hand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 20 * KILLS)]


async def in_sqlite_to(url: str, step: str, tmp_path: Path) -> None:
    place = in_sqlite(tmp_path)
    with closing(sqlite3.connect(tmp_path / "app.db")) as con, con:
        for table in TABLES:
            con.execute(table)

    def orders() -> list[Any]:
        with closing(sqlite3.connect(tmp_path / "app.db")) as con:
            return con.execute("SELECT key, n FROM orders").fetchall()

    judge(await killed(place, url, step), orders())


async def test_kills_in_sqlite(tmp_path: Path) -> None:
    await in_sqlite_to(embedded(tmp_path), "commit", tmp_path)


async def test_kills_with_a_broker(tmp_path: Path) -> None:
    """NATS, which may accept a part of what is published at once."""
    with fresh("nats") as nats:
        await in_sqlite_to(nats.url, "publish", tmp_path)


async def test_kills_in_postgres(tmp_path: Path) -> None:
    async with in_postgres() as place:
        with psycopg.connect(place) as con:
            for table in TABLES:
                con.execute(table)
            for key in KEYS:
                con.execute("INSERT INTO latch VALUES (%s)", (key,))
        came = await killed(place, embedded(tmp_path), "commit")
        with psycopg.connect(place) as con:
            judge(came, con.execute("SELECT key, n FROM orders").fetchall())


def embedded(folder: Path) -> str:
    return f"sqlite:///{folder / 'bus.db'}?lease=1s&max_size=4GiB"


async def killed(place: str, url: str, step: str) -> list[Message[Any]]:
    """Two writers and two relays; one of each is killed and replaced in a round. What was published at the end.

    Half of the relays kill themselves just before or after a ``step`` of the bus: with rows in hand.
    """
    chance, outbox, busy, fell = random.Random(11), Outbox(place), 0, 0
    await outbox.create()
    async with Processes() as processes:

        async def start(*arguments: str, points: str = "") -> Process:
            process = await processes.start("tests.patterns.outbox_worker", *arguments, points=points)
            await process.line("ready")
            return process

        def relay() -> Coroutine[Any, Any, Process]:
            armed = f"{step}.{chance.choice(['before', 'after'])}=kill@{chance.randrange(20, 40)}"
            return start("relay", place, url, points=chance.choice([armed, ""]))

        writers, relays = [await start("write", place, f"{n}") for n in range(2)], [await relay() for _ in range(2)]
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0, 0.3))
            busy += await outbox.pending() > 0
            index = chance.randrange(2)
            fell += not relays[index].kill()
            await asyncio.sleep(chance.uniform(0, 0.1))
            assert writers[index].kill()
            relays[index], writers[index] = await asyncio.gather(relay(), start("write", place, f"{number + 2}"))
        for process in (*writers, *relays):
            process.kill()
        last = await start("relay", place, url)
        async with asyncio.timeout(120):
            while await outbox.pending():  # noqa: ASYNC110  # a table tells nobody
                await asyncio.sleep(0.05)
        last.terminate()
        assert await last.wait() == 0
    assert fell >= KILLS // 5, "too few fell with rows in hand"
    assert busy > KILLS // 2, "too few were killed with work to do"
    return await published(url)


async def published(url: str) -> list[Message[Any]]:
    app, found, position = App("judge", url), list[Message[Any]](), 0
    async with app.connect():
        bus: Any = app.bus()
        while stored := await bus.peek("orders.placed", after=position, limit=2_000):
            found += (each.message for each in stored)
            position = stored[-1].position
    return found


def judge(came: list[Message[Any]], orders: list[Any]) -> None:
    data = [msgspec.json.decode(message.body) for message in came]
    assert not any(each["never"] for each in data), "what was rolled back was published"
    ids = dict[tuple[str | None, int], str]()
    for message, each in zip(came, data, strict=True):
        assert ids.setdefault((message.key, each["n"]), message.id) == message.id, "a second id"
    assert Counter(list(ids)) == Counter(map(tuple, orders)), "lost, or made up"
    last = Counter[str | None]()
    for key, n in ids:  # the first of each
        assert n == last[key] + 1, f"{key}: {n} after {last[key]}"
        last[key] = n
    assert len(last) == len(KEYS)
    assert len(came) - len(ids) <= KILLS * 20, "more duplicates than a batch for each relay that was killed"
