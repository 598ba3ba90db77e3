"""The servers and clients of the scenarios ``serve``, ``rpc``, ``devices``, small; and what is wrong about a run shows.
Nothing here depends on how long anything takes. What keeps to a core does so in a process of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench.harness import SCENARIOS, scenario
from bench.pacer import Stamped
from bench.payload import body
from bench.peers._shared import encode
from bench.serving import devices, rpc, web
from bench.serving.following import Crowd, Events, WebSocket, arrived, followed, masked, topics
from bench.serving.posting import HOST, asked, connected, post
from bench.serving.processes import running

LATE = 4  # figures of delays


def alone(work: Any, *given: Any) -> Any:
    """The result, and which processes were left behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_performed, work, *given).result()


def _performed(work: Any, *given: Any) -> tuple[Any, list[str]]:
    return work(*given), [child.name() for child in psutil.Process().children(recursive=True)]


# -- the works


def everything(subject: str, folder: str) -> Sequence[float]:
    """Rates of publishing one and many, then delays of followers of either kind."""
    with running(*web.words(subject, Path(folder)), folder=Path(folder)) as server:
        rates = [web.on_uvloop(web.posted(server.port, 100, each, 2)) for each in (1, 50)]
        follows = [
            len(web.on_uvloop(followed(server.port, kind, 12, topics(3), 1, lambda: None)))
            for kind in web.KINDS.values()
        ]
        assert server.memory() > 0
        assert server.cpu() > 0
    if subject == web.SQLITE:
        assert asyncio.run(web.stored(Path(folder))) == 204 + 100 + 100
    return (*rates, *follows)


@pytest.mark.slow
@pytest.mark.parametrize("subject", [web.BARE, web.MEMORY, web.SQLITE])
def test_a_web_server_does_every_work(subject: str, tmp_path: Path) -> None:
    (one, many, *follows), left = alone(everything, subject, str(tmp_path))
    assert one > 0
    assert many > 0
    assert follows == [12, 12]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("subject", [rpc.BARE, web.MEMORY])
def test_a_grpc_server_does_every_work(subject: str) -> None:
    for work in rpc.WORKS:
        (rate,), left = alone(rpc.measured, subject, work, 40)
        assert rate > 0
        assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("library", devices.LIBRARIES)
def test_devices_reach_either_library(library: str) -> None:
    for package in ("bcrypt", "nats", "paho"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed; scripts/bench_setup.sh installs it")
    measured, left = alone(devices.measured, library, 20, 1)
    *late, puback, again, memory = measured.values
    assert len(late) == LATE
    assert puback > 0
    assert again == 0
    assert memory > 0
    assert sum(measured.histogram.counts.values()) == 20
    assert left == []


# -- what is wrong about a run


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """The port of a server that says the same to everybody, in two parts, and goes on."""

    done = list[asyncio.Task[None] | None]()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"}"):
                writer.write(answer[:20])
                await writer.drain()
                writer.write(answer[20:])
        writer.close()

    async with await asyncio.start_server(one, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, done))


async def test_what_was_accepted_is_counted_by_the_answers() -> None:
    ids = b'{"ids":["a","b"]}'
    accepted = b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%s" % (len(ids), ids)
    async with answering(accepted) as port:
        connections = await connected(port, 2)
        assert await asked(connections, [post("orders.placed", body())] * 3) == 6
        assert await asked(connections, [post("orders.placed", body())]) == 2
        for connection in connections:
            connection.transport.close()


async def test_an_answer_that_accepts_nothing_ends_the_run() -> None:
    async with answering(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n") as port:
        (connection,) = await connected(port, 1)
        with pytest.raises(RuntimeError, match="429 Too Many"):
            await asked([connection], [post("orders.placed", body())])
        connection.transport.close()


def event(n: int) -> bytes:
    """As long as a server's, so that no more than one is held back."""
    return b'id: 1\ndata: {"data":%s}\n\n' % encode(Stamped(time.monotonic(), n))


def heard(kind: type[Events | WebSocket], *chunks: bytes, step: int = 1) -> Crowd:
    crowd = Crowd()
    follower = kind(crowd, "prices.t0", 0, step)
    follower.ready.set_result(None)
    for chunk in chunks:
        follower.data_received(chunk)
    return crowd


@pytest.mark.parametrize("kind", [Events, WebSocket])
async def test_each_message_counts_once_however_it_is_cut(kind: type[Events]) -> None:
    told = b"".join(map(event, (0, 2, 4)))
    for size in (1, 7, 100, len(told)):
        crowd = heard(kind, *(told[at : at + size] for at in range(0, len(told), size)), step=2)
        assert crowd.wrong == ""
        assert len(crowd.delays) == 3


@pytest.mark.parametrize("numbers", [(0, 2), (1,), (0, 0), (0, 1, 0)])
async def test_what_is_missing_or_comes_twice_ends_the_run(numbers: Sequence[int]) -> None:
    crowd = heard(Events, *map(event, numbers))
    assert "instead of" in crowd.wrong
    with pytest.raises(RuntimeError, match="instead of"):
        await arrived(crowd, 99)


async def test_a_follower_whose_connection_is_lost_ends_the_run() -> None:
    crowd = Crowd()
    Events(crowd, "prices.t0", 0, 1).connection_lost(None)
    with pytest.raises(RuntimeError, match="lost"):
        await arrived(crowd, 1)


def test_frames_of_a_client_are_masked() -> None:
    assert masked("hi") == b"\x81\x82\x00\x00\x00\x00hi"


async def test_devices_must_all_be_acknowledged_and_all_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PATIENCE", 0.0)
    seen = devices.Seen()
    for n in (0, 1, 1):
        seen.see(Stamped(time.monotonic(), n))
    assert (len(seen.delays), seen.again) == (2, 1)
    await devices.arrived(seen, 2, 2)
    with pytest.raises(RuntimeError, match="acknowledged"):
        await devices.arrived(seen, 1, 2)
    with pytest.raises(TimeoutError, match="2 of 3"):
        await devices.arrived(seen, 3, 3)


# -- the scenarios


@pytest.mark.parametrize("name", ["serve", "rpc", "devices"])
@pytest.mark.parametrize("quick", [True, False])
def test_each_of_ours_is_beside_one_that_is_there(name: str, quick: bool) -> None:
    found = {subject.name: subject for subject in scenario(SCENARIOS[name], quick).subjects}
    compared = {other for subject in found.values() for figure in subject.figures for other in figure.ratio_to}
    assert compared
    assert compared <= found.keys()
    assert all(not name.startswith("Tidings") for name in compared)


def test_the_bars_are_those_of_the_budget() -> None:
    every = [s for name in ("serve", "rpc", "devices") for s in scenario(SCENARIOS[name], False).subjects]
    least = {s.name: f.at_least for s in every for f in s.figures if f.at_least is not None}
    late = {s.name for s in every for f in s.figures if f.name == "p99" and f.at_most == 250.0}
    assert {bar for name, bar in least.items() if "single POSTs" in name} == {3_000.0}
    assert {bar for name, bar in least.items() if "NDJSON" in name} == {50_000.0}
    assert {bar for name, bar in least.items() if "POST" not in name} == {30_000.0}
    assert {name.partition(":")[2].partition(",")[0] for name in late} >= {" 5", " 2"}
