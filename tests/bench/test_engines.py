"""Each library does each work of the scenario ``engines``, small, on the servers of the session; and what is wrong
about a run shows. Nothing here depends on how long anything takes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from multiprocessing import get_context

import psutil
import pytest
from bench.engines import (
    ENGINES,
    FASTSTREAM,
    OURS,
    RAW,
    WORKS,
    figures,
    libraries,
    library,
    named,
    scenario,
    size,
    works,
)
from bench.harness import ROOT
from bench.peers._shared import Delays
from msgspec import Struct
from tests.servers import Missing, server

from bench import servers

PACKAGES = {
    "postgres": "asyncpg",
    "nats": "nats",
    "rabbitmq": "aio_pika",
    "redis": "redis",
    "kafka": "confluent_kafka",
}
FEW = 2100  # messages: more than two batches
EVERY = [(engine, name) for engine in ENGINES for name in libraries(engine)]


def perform(engine: str, name: str, url: str) -> tuple[list[float], int, list[str]]:
    """Rates, how many delays were measured, and the processes it left behind. Runs in a process of its own."""

    def fresh() -> works.Library:
        return library(engine, name)(url, works.place())

    rates = [asyncio.run(works.rate(work, fresh(), FEW)) for work in works.RATES]
    delays = asyncio.run(works.latency(fresh(), 100.0, 0.5))
    return rates, len(delays), [child.name() for child in psutil.Process().children(recursive=True)]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("engine", "name"), EVERY)
def test_a_library_does_every_work(engine: str, name: str) -> None:
    package = "faststream" if name == FASTSTREAM else PACKAGES[engine]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; scripts/bench_setup.sh installs it")
    url = server(engine).url
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rates, delays, left = pool.submit(perform, engine, name, url).result()
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates)
    assert delays == 50
    assert left == []


# -- what is wrong about a run


class Kept(works.Library):
    """A library without a server: a list. ``lose`` and ``twice`` are numbers of orders, ``unsettled`` how many."""

    lose: int | None = None
    twice: int | None = None
    unsettled = 0

    def __init__(self, url: str = "", place: str = "") -> None:
        self.url, self.place = url, place
        self.items = list[Struct]()
        self.removed = False

    async def create(self) -> None:
        self.items.clear()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[works.Publisher]:
        yield self

    async def many(self, items: Sequence[Struct]) -> None:
        for item in items:
            await self.one(item)

    async def one(self, item: Struct) -> None:
        if item.n != self.lose:  # type: ignore[attr-defined]
            self.items += [item] * (2 if item.n == self.twice else 1)  # type: ignore[attr-defined]

    @asynccontextmanager
    async def consuming(self, sink: works.Sink) -> AsyncIterator[works.Settled]:
        async def all_of_them() -> None:
            for item in self.items:
                sink.see(item)  # type: ignore[arg-type]
            del self.items[self.unsettled :]

        yield all_of_them

    async def left(self) -> int:
        return len(self.items)

    async def remove(self) -> None:
        self.removed = True


class Loses(Kept):
    lose = 7


class Doubles(Kept):
    twice = 7


class Leaves(Kept):
    unsettled = 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "EMPTIED", 0.0)


@pytest.mark.parametrize("work", works.RATES)
def test_a_run_that_is_right_has_a_rate_and_leaves_no_place(work: str) -> None:
    kept = Kept()
    assert asyncio.run(works.rate(work, kept, 1500)) > 0
    assert kept.removed


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wrong", [Loses, Doubles, Leaves])
def test_a_run_that_is_wrong_has_no_rate(wrong: type[Kept]) -> None:
    kept = wrong()
    with pytest.raises(RuntimeError, match="1500 published"):
        asyncio.run(works.rate("backlog", kept, 1500))
    assert kept.removed


@pytest.mark.parametrize("wrong", [Loses, Doubles])
def test_what_is_accepted_must_be_there(wrong: type[Kept]) -> None:
    with pytest.raises(RuntimeError, match="stored"):
        asyncio.run(works.rate("publish", wrong(), 1500))


def test_concurrent_publishers_share_the_work() -> None:
    kept = Kept()
    assert asyncio.run(works.concurrent(kept, 100, 4)) > 0
    assert sorted(item.n for item in kept.items) == list(range(100))  # type: ignore[attr-defined]


def test_rates_begin_at_the_beginning_or_at_the_first_message() -> None:
    consumed = works.Consumed(messages=101, began=10.0, first=11.0, ended=12.0)
    assert consumed.rate == 50.5
    assert consumed.steady == 100.0


def test_a_background_loop_that_fails_tells_why() -> None:
    async def consume() -> None:
        raise LookupError("gone")

    async def settled() -> None:
        async with works.background(consume()) as wait:
            await wait()

    with pytest.raises(LookupError, match="gone"):
        asyncio.run(settled())


def test_delays_of_the_first_messages_are_forgotten() -> None:
    from bench.pacer import Stamped

    delays = Delays(10.0, 2.0, warm=1.0)
    for n in range(20):
        assert delays.more()
        delays.see(Stamped(0.0, n))
    assert not delays.more()
    assert delays.count == 20
    assert len(delays.values) == 10


# -- the scenario


def test_ours_is_judged_beside_the_raw_client_and_faststream() -> None:
    bars = {
        (engine, work): [figure.ratio_at_least for figure in figures(engine, OURS, work)]
        for engine in ENGINES
        for work in ("publish", "backlog", "end_to_end")
    }
    assert bars["postgres", "backlog"] == [0.9]
    assert bars["nats", "backlog"] == bars["redis", "backlog"] == [0.9, 3.0]
    assert bars["kafka", "backlog"] == [0.7, None, 3.0]  # also beside records like ours, without a bar
    assert bars["rabbitmq", "backlog"] == [0.9, 1.7]
    assert bars["nats", "publish"] == bars["nats", "end_to_end"] == [0.9, None]


def test_the_raw_client_and_ours_get_as_many_messages() -> None:
    for engine in ENGINES:
        for work in works.RATES:
            assert size(engine, OURS, work) == size(engine, RAW, work) > 0


def test_every_library_is_a_subject_of_every_work() -> None:
    names = {subject.name for subject in scenario(True).subjects}
    assert names == {named(engine, name, work) for engine, name in EVERY for work in WORKS}


# -- servers, and the profile


def test_shared_servers_are_found_by_those_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_TEST_REDIS", raising=False)
    monkeypatch.setenv("TIDINGS_TEST_NATS", "nats://somewhere:1")
    server("redis")
    with servers.shared(("redis", "nats")):
        url = os.environ["TIDINGS_TEST_REDIS"]
        with servers.engine("redis") as first, servers.engine("redis") as second:
            assert first == second == url
        with servers.engine("nats") as theirs:
            assert theirs == "nats://somewhere:1"
    assert "TIDINGS_TEST_REDIS" not in os.environ
    assert os.environ["TIDINGS_TEST_NATS"] == "nats://somewhere:1"


def test_a_server_that_cannot_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, settings: object) -> object:
        raise Missing(f"{name} is nowhere")

    monkeypatch.delenv("TIDINGS_TEST_REDIS", raising=False)
    monkeypatch.setattr(servers, "private", missing)
    with servers.shared(("redis",)):
        assert "TIDINGS_TEST_REDIS" not in os.environ
        with pytest.raises(Missing, match="nowhere"), servers.engine("redis"):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["redis", "kafka"])
def test_a_profile_shows_where_the_time_goes(engine: str) -> None:
    """Kafka's raw client consumes in a thread of its own."""
    environment = {**os.environ, f"TIDINGS_TEST_{engine.upper()}": server(engine).url}
    command = (sys.executable, "-m", "bench.profile", engine, "backlog", "--subject", RAW, "--messages", "4000")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 4,000 messages" in done.stdout
    main, *threads = done.stdout.split("waiting included")[1:]
    assert any("_shared.py" in shown for shown in (threads if engine == "kafka" else (main,)))
