"""One proxied connection, and the two directions it consists of. ``proxy.py`` is the face."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress

from msgspec import Struct

from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import seconds

CHUNK, CHUNKS = 16_384, 64  # bytes read at once; how many such reads may wait
DRIP = 0.02  # a slow direction sends what is due about every so many seconds

Target = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


class Way:
    """One direction of all connections of a ``Proxy``: what disturbs it, and what it has passed.

    ``bytes``: handed to the receiving side; ``held``: read from the sending side, and waiting.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.flows: set[Flow] = set()
        self.changed = asyncio.Event()  # another one after each change
        self.rate: float | None = None
        self.budget: int | None = None
        self._calm()

    @property
    def held(self) -> int:
        return sum(flow.held for flow in self.flows)

    def latency(self, delay: Duration, jitter: Duration = 0.0) -> None:
        """Bytes come later by ``delay`` and up to ``jitter`` more; their order stays."""
        self.delay, self.jitter = seconds(delay, "latency"), seconds(jitter, "jitter")
        self._change()

    def bandwidth(self, bytes_per_second: float) -> None:
        """Each connection drains at this rate."""
        if not bytes_per_second > 0:
            raise InvalidOption(f"a bandwidth cannot be {bytes_per_second!r}", mend="bytes a second; or stall()")
        self.rate = bytes_per_second
        self._change()

    def stall(self) -> None:
        """Half-open: nothing passes and nothing is refused; the end of a connection or its reset does not pass either.

        Until ``heal``: then it all comes, as after a network's outage.
        """
        self.stalled = True
        self._change()

    def cut(self, after: int, *, reset: bool = False) -> None:
        """End each connection, old or new, once ``after`` more bytes have passed (0: when the next one comes).

        By FIN, and exactly these bytes arrive; ``reset``: by RST, which may overtake them.
        """
        if after < 0:
            raise InvalidOption(f"a connection cannot be cut after {after} bytes", mend="0 or more")
        self.budget, self.hard = after, reset
        self._spread()

    def heal(self) -> None:
        """Pass everything again, at once, what waits first."""
        self._calm()
        self._spread()

    def _calm(self) -> None:
        self.delay = self.jitter = 0.0
        self.rate = self.budget = None
        self.stalled = self.hard = False

    def _spread(self) -> None:
        for flow in self.flows:
            flow.budget = self.budget
        self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Waiting(Struct, frozen=True):
    """Bytes on their way; none: the sender has ended. ``broken``: it was reset."""

    arrived: float
    luck: float  # 0 to 1: how much of the jitter it gets
    data: bytes
    broken: bool = False


class Cut(Exception):
    """As many bytes as were allowed have passed."""

    def __init__(self, hard: bool) -> None:
        super().__init__(hard)
        self.hard = hard


class Flow:
    """One direction of one connection: one task reads, another one writes what is due."""

    def __init__(self, way: Way, source: socket.socket, to: socket.socket, seed: str) -> None:
        self.way, self.source, self.to = way, source, to
        self.loop, self.luck = asyncio.get_running_loop(), random.Random(seed)
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue(CHUNKS)
        self.budget, self.held = way.budget, 0
        self.free = 0.0  # when the rate allows the next byte

    async def read(self) -> None:
        data, broken = b"-", False
        while data:
            await self._unstalled()  # what is not read fills the sender's own buffers
            try:
                data = await self.loop.sock_recv(self.source, CHUNK)
            except ConnectionError:
                data, broken = b"", True
            self.held += len(data)
            await self.queue.put(Waiting(self.loop.time(), self.luck.random(), data, broken))

    async def write(self) -> None:
        while True:
            waiting = await self.queue.get()
            await self._permitted(waiting)
            if waiting.broken:
                raise ConnectionResetError
            if not waiting.data:
                self.to.shutdown(socket.SHUT_WR)
                return
            await self._send(waiting)

    async def _send(self, waiting: Waiting) -> None:
        way, data = self.way, waiting.data
        while data or self.budget == 0:
            await self._permitted(waiting)
            if self.budget == 0:
                raise Cut(way.hard)
            most = CHUNK if way.rate is None else max(1, int(way.rate * DRIP))
            piece = data[: most if self.budget is None else min(most, self.budget)]
            await self.loop.sock_sendall(self.to, piece)
            data = data[len(piece) :]
            way.bytes += len(piece)
            self.held -= len(piece)
            if self.budget is not None:
                self.budget = max(0, self.budget - len(piece))
            if way.rate is not None:
                self.free = max(self.free, self.loop.time()) + len(piece) / way.rate

    async def _unstalled(self) -> None:
        while self.way.stalled:
            await self.way.changed.wait()

    async def _permitted(self, waiting: Waiting) -> None:
        """Until neither stall, latency nor rate holds this back; a change of the faults counts at once."""
        way = self.way
        while True:
            await self._unstalled()
            due = waiting.arrived + way.delay + way.jitter * waiting.luck
            left = max(due, self.free if way.rate else 0.0) - self.loop.time()
            if left <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(way.changed.wait(), left)


class Link:
    """A client's connection, and the one to the target that belongs to it. ``hard``: it ends by RST."""

    def __init__(self, client: socket.socket, target: Target, up: Way, down: Way, seed: str) -> None:
        self.client, self.target, self.up, self.down, self.seed = client, target, up, down, seed
        self.server: socket.socket | None = None
        self.hard = self.unreachable = False

    async def run(self) -> None:
        while self.up.stalled and self.down.stalled:  # it hangs
            await self.up.changed.wait()
        try:
            self.server = await _connect(self.target)
        except OSError:
            self.hard = self.unreachable = True
        else:
            await self._pass(self.server)

    async def _pass(self, server: socket.socket) -> None:
        up = Flow(self.up, self.client, server, f"{self.seed}/up")
        down = Flow(self.down, server, self.client, f"{self.seed}/down")
        self.up.flows.add(up)
        self.down.flows.add(down)
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (up.read, up.write, down.read, down.write):
                    tasks.create_task(work())
        except* Cut as cuts:
            self.hard = any(cut.hard for cut in cuts.exceptions if isinstance(cut, Cut))
        except* OSError:  # one end was reset: so is the other
            self.hard = True
        finally:
            self.up.flows.discard(up)
            self.down.flows.discard(down)

    def close(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                if self.hard:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()


async def _connect(target: Target) -> socket.socket:
    """Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    if isinstance(target, str):
        server = socket.socket(socket.AF_UNIX)
        address: Target = target
    else:
        family, kind, number, _, address = (await loop.getaddrinfo(*target, type=socket.SOCK_STREAM))[0]  # type: ignore[assignment]
        server = socket.socket(family, kind, number)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        server.setblocking(False)
        await loop.sock_connect(server, address)
    except BaseException:
        server.close()
        raise
    return server
