"""The fault proxy, seen from both ends: a client's socket and a real echo server's."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tidings.kernel.errors import InvalidOption, NotOpen
from tidings.testing.faults.proxy import Proxy

DEADLINE, QUIET = 10.0, 0.2


class Echo:
    """A server that sends back what it gets, and notes how its connections end."""

    def __init__(self) -> None:
        self.got: list[bytearray] = []
        self.ended: list[str] = []
        self.greeting = b""

    def size(self) -> int:
        return sum(map(len, self.got))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        self.got.append(got)
        try:
            if self.greeting:
                writer.write(self.greeting)
            while data := await reader.read(65_536):
                got += data
                writer.write(data)
                await writer.drain()
            self.ended.append("fin")
        except ConnectionError:
            self.ended.append("rst")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self, count: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(count), DEADLINE)

    async def rest(self) -> bytes:
        """All until FIN; raises ``ConnectionResetError`` for an RST."""
        return await asyncio.wait_for(self.reader.read(), DEADLINE)

    async def silent(self) -> None:
        """For a while: neither a byte, nor FIN, nor RST."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), QUIET)


class Wire:
    """A proxy, the server behind it, and its clients."""

    def __init__(self, proxy: Proxy, echo: Echo, clients: list[Client]) -> None:
        self.proxy, self.echo, self.clients = proxy, echo, clients

    async def client(self) -> Client:
        found = await asyncio.wait_for(asyncio.open_connection(self.proxy.host, self.proxy.port), DEADLINE)
        self.clients.append(Client(*found))
        return self.clients[-1]


@asynccontextmanager
async def wire(seed: int = 0) -> AsyncIterator[Wire]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = list[Client]()
    try:
        async with Proxy("127.0.0.1", port, seed=seed) as proxy:
            yield Wire(proxy, echo, clients)
    finally:
        for client in clients:
            client.writer.close()
            with suppress(ConnectionError):
                await client.writer.wait_closed()
        server.close()
    await until(lambda: len(echo.ended) == len(echo.got), "every connection of the server has ended")


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


async def test_passes_everything_and_counts_it() -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with wire() as w:
        client = await w.client()
        client.send(data)
        assert await client.read(len(data)) == data
        assert (w.proxy.up.bytes, w.proxy.down.bytes) == (len(data), len(data))
        assert (w.proxy.up.held, w.proxy.down.held) == (0, 0)
        assert (w.proxy.connections, w.proxy.open, w.proxy.resets) == (1, 1, 0)
        client.writer.write_eof()  # half-closed: the way back stays open until the server ends it
        assert await client.rest() == b""
        await until(lambda: w.proxy.open == 0, "closed by both ends")
        assert w.echo.ended == ["fin"]


async def test_latency_delays_and_keeps_order() -> None:
    async with wire() as w:
        client = await w.client()
        w.proxy.latency("100ms", jitter="100ms")
        began = time.monotonic()
        for n in range(10):
            client.send(struct.pack(">I", n))
            await asyncio.sleep(0.005)
        got = await client.read(40)
        assert time.monotonic() - began >= 0.2  # there and back
        assert struct.unpack(">10I", got) == tuple(range(10))


async def test_latency_does_not_slow_the_stream() -> None:
    """What waits is on its way together: 640 KiB, 40 reads, do not take 40 delays."""
    data = bytes(640 * 1024)
    async with wire() as w:
        client = await w.client()
        w.proxy.up.latency(0.3)
        began = time.monotonic()
        client.send(data)
        await client.read(len(data))
        assert 0.3 <= time.monotonic() - began < 6.0  # one after the other: 12 s


async def test_the_same_seed_gives_the_same_jitter() -> None:
    async def luck(seed: int) -> list[float]:
        async with wire(seed) as w:
            client = await w.client()
            client.send(b"x")
            await client.read(1)
            (flow,) = w.proxy.up.flows
            return [flow.luck.random() for _ in range(5)]

    assert await luck(7) == await luck(7) != await luck(8)


async def test_bandwidth_is_a_slow_drain() -> None:
    async with wire() as w:
        client = await w.client()
        w.proxy.down.bandwidth(20_000)
        began = time.monotonic()
        client.send(bytes(10_000))
        await until(lambda: w.echo.size() == 10_000, "the way up is not slow")
        first = await client.read(1)
        assert w.proxy.down.held > 5_000
        assert first + await client.read(9_999) == bytes(10_000)
        assert time.monotonic() - began >= 0.4


async def test_back_pressure_reaches_the_sender() -> None:
    """The buffers are bounded: a sender whose bytes nobody takes has to stop."""
    async with wire() as w:
        w.proxy.up.bandwidth(1)
        with socket.create_connection((w.proxy.host, w.proxy.port)) as client:
            client.setblocking(False)
            sent = 0
            while True:
                try:
                    sent += client.send(bytes(65_536))
                except BlockingIOError:
                    held = w.proxy.up.held
                    await asyncio.sleep(QUIET)
                    if w.proxy.up.held == held:  # the proxy takes no more either
                        break
            assert w.proxy.up.held <= 66 * 16_384  # a queue of 64, one being read and one being written
            assert sent > w.proxy.up.held + w.proxy.up.bytes


async def test_a_stalled_way_is_silent_for_both_ends_and_heals() -> None:
    async with wire() as w:
        client = await w.client()
        client.send(b"before")
        assert await client.read(6) == b"before"
        w.proxy.down.stall()
        client.send(b"during")
        await until(lambda: w.echo.got[0].endswith(b"during"), "the way up is open")
        await client.silent()
        w.proxy.heal()
        assert await client.read(6) == b"during"


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_half_open_the_peer_does_not_learn_that_the_other_one_left(end: str) -> None:
    async with wire() as w:
        client = await w.client()
        client.send(b"before")
        await client.read(6)
        w.proxy.stall()
        client.send(b"lost")
        sock = client.writer.get_extra_info("socket")
        if end == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.close()
        await asyncio.sleep(QUIET)
        assert w.echo.ended == []
        assert w.proxy.open == 1
        w.proxy.heal()
        await until(lambda: w.echo.ended == [end], "now it learns it")


async def test_a_partition_hangs_old_and_new_connections() -> None:
    async with wire() as w:
        old = await w.client()
        old.send(b"1")
        await old.read(1)
        w.proxy.partition()
        new = await w.client()
        old.send(b"old")
        new.send(b"new")
        await asyncio.gather(old.silent(), new.silent())
        assert len(w.echo.got) == 1  # the server has not heard of the new one
        w.proxy.heal()
        assert await old.read(3) == b"old"
        assert await new.read(3) == b"new"


async def test_a_partition_that_refuses() -> None:
    async with wire() as w:
        old = await w.client()
        w.proxy.partition(refuse=True)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                await w.client()
        old.send(b"old")
        await old.silent()
        port = w.proxy.port
        w.proxy.heal()
        assert await old.read(3) == b"old"
        new = await w.client()
        new.send(b"new")
        assert await new.read(3) == b"new"
        assert w.proxy.port == port


async def test_reset_is_an_rst_for_both_ends() -> None:
    async with wire() as w:
        clients = [await w.client() for _ in range(3)]
        for client in clients:
            client.send(b"1")
            await client.read(1)
        w.proxy.reset()
        for client in clients:
            with pytest.raises(ConnectionResetError):
                await client.rest()
        await until(lambda: w.echo.ended == ["rst"] * 3, "the server sees it, too")
        assert (w.proxy.resets, w.proxy.open) == (3, 0)
        new = await w.client()
        new.send(b"new")
        assert await new.read(3) == b"new"


async def test_reset_of_each_new_connection_until_healed() -> None:
    async with wire() as w:
        w.proxy.reset(new=True)
        for _ in range(3):
            client = await w.client()
            with pytest.raises(ConnectionResetError):
                await client.rest()
        assert w.echo.got == []
        assert w.proxy.resets == 3
        w.proxy.heal()
        client = await w.client()
        client.send(b"new")
        assert await client.read(3) == b"new"


@pytest.mark.parametrize("after", [1, 7, 16_383, 16_384, 16_385, 40_000])
async def test_cut_at_an_arbitrary_byte(after: int) -> None:
    """Exactly so many bytes arrive, then FIN: a torn frame."""
    data = random.Random(after).randbytes(50_000)
    async with wire() as w:
        client = await w.client()
        client.send(b"before")
        await client.read(6)
        w.proxy.up.cut(after)
        client.send(data)
        await until(lambda: len(w.echo.ended) == 1, "the server's connection has ended")
        assert bytes(w.echo.got[0]) == b"before" + data[:after]
        new = await w.client()
        new.send(data)
        await until(lambda: len(w.echo.ended) == 2, "each new one, too")
        assert bytes(w.echo.got[1]) == data[:after]
        w.proxy.heal()
        whole = await w.client()
        whole.send(data)
        assert await whole.read(len(data)) == data


async def test_cut_of_the_answer() -> None:
    async with wire() as w:
        w.echo.greeting = b"HELLO, I AM A SERVER"
        w.proxy.down.cut(5)
        client = await w.client()
        assert await client.rest() == b"HELLO"


async def test_cut_before_the_first_byte() -> None:
    async with wire() as w:
        w.proxy.up.cut(0)
        client = await w.client()
        await client.silent()
        client.send(b"x")
        assert await client.rest() == b""
        assert w.echo.got == [b""]


async def test_cut_by_rst() -> None:
    async with wire() as w:
        client = await w.client()
        w.proxy.down.cut(3, reset=True)
        client.send(b"abcdef")
        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert w.proxy.resets == 1


async def test_nobody_behind_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with Proxy(*unused.getsockname()) as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), DEADLINE)
            writer.close()
            assert (proxy.unreachable, proxy.resets) == (1, 1)


async def test_a_unix_socket_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    echo, path = Echo(), "s"
    server = await asyncio.start_unix_server(echo.serve, path)
    async with Proxy.unix(path) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        writer.close()
        await writer.wait_closed()
    server.close()
    await until(lambda: echo.ended, "the server's connection has ended")


async def test_leaves_nothing_behind() -> None:
    """Whatever was going on: no task, no open file, and the port is free."""
    process, tasks = psutil.Process(), asyncio.all_tasks()
    files = process.num_fds()
    faults: list[Callable[[Proxy], None]] = [
        lambda proxy: None,
        Proxy.stall,
        lambda proxy: proxy.partition(refuse=True),
        lambda proxy: proxy.bandwidth(1),
    ]
    for fault in faults:
        async with wire() as w:
            client = await w.client()
            await until(lambda w=w: w.proxy.open == 1, "connected")  # type: ignore[misc]
            fault(w.proxy)
            client.send(bytes(100_000))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(w.proxy.host, w.proxy.port)
    await until(lambda: asyncio.all_tasks() == tasks, "tasks are left")

    def closed() -> bool:  # a transport closes its socket one turn of the loop after its task has ended
        gc.collect()
        return process.num_fds() <= files

    await until(closed, "open files are left")


async def test_what_means_nothing_is_refused() -> None:
    proxy = Proxy("127.0.0.1", 1)
    with pytest.raises(NotOpen, match="async with"):
        _ = proxy.address
    with pytest.raises(InvalidOption, match="latency"):
        proxy.latency("soon")
    with pytest.raises(InvalidOption, match="bandwidth"):
        proxy.bandwidth(0)
    with pytest.raises(InvalidOption, match="cut"):
        proxy.up.cut(-1)
