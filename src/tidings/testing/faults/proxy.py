"""A TCP proxy that misbehaves on command: slow, silent, torn, reset, cut off.

It stands between a client and its server, on a free port of the loopback interface, and passes bytes until told
otherwise. *Up* is from the client to the server, *down* the way back; each can be disturbed by itself::

    async with Proxy("127.0.0.1", 4222) as proxy:
        client = await connect(f"nats://{proxy.address}")
        proxy.latency("50ms", jitter="20ms")  # both ways
        proxy.down.stall()  # answers stay away, and nobody is told
        proxy.reset()  # RST for every connection
        proxy.heal()
        assert proxy.connections == 2

Bytes are delayed and withheld, never altered or reordered. About 1 MiB may wait in each direction of a connection;
beyond that the sender is not read from, so its own buffers fill, as they would over a slow network. What the kernel of
the receiving side has taken is delivered.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from tidings.kernel.errors import Duration, NotOpen

from ._link import Link, Target, Way

__all__ = ["Proxy", "Way"]


class Proxy:
    """In front of ``host:port``, or of a Unix socket (``Proxy.unix(path)``). The same seed gives the same jitter.

    ``connections`` counts those accepted, ``resets`` those it ended by RST, ``unreachable`` those whose target could
    not be reached (they are reset, too).
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._target: Target = (host, port)
        self.seed, self.port = seed, 0
        self.connections = self.resets = self.unreachable = 0
        self.up, self.down = Way(), Way()
        self._seat: socket.socket | None = None  # keeps the port while new connections are refused
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], Link] = {}
        self._reset_new = False

    @classmethod
    def unix(cls, path: str, *, seed: int = 0) -> Proxy:
        """In front of a Unix socket; clients come over TCP all the same."""
        proxy = cls("", 0, seed=seed)
        proxy._target = path
        return proxy

    @property
    def address(self) -> str:
        """``host:port``, for URLs. Raises ``NotOpen``."""
        if self._seat is None:
            raise NotOpen("the proxy is not open", mend="use `async with Proxy(...) as proxy:`")
        return f"{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._links)

    async def __aenter__(self) -> Proxy:
        self._seat = self._bind()
        self.port = self._seat.getsockname()[1]
        self._listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Every connection is reset; nothing is left."""
        self._refuse()
        self.reset()
        await asyncio.gather(*self._links, return_exceptions=True)
        if self._seat is not None:
            self._seat.close()
            self._seat = None

    # -- both ways ------------------------------------------------------------------------------------------------

    def latency(self, delay: Duration, jitter: Duration = 0.0) -> None:
        """``Way.latency``, both ways: a round trip takes twice as long."""
        self.up.latency(delay, jitter)
        self.down.latency(delay, jitter)

    def bandwidth(self, bytes_per_second: float) -> None:
        """``Way.bandwidth``, both ways."""
        self.up.bandwidth(bytes_per_second)
        self.down.bandwidth(bytes_per_second)

    def stall(self) -> None:
        """``Way.stall``, both ways; a new connection is accepted, and reaches nobody until ``heal``."""
        self.up.stall()
        self.down.stall()

    def partition(self, *, refuse: bool = False) -> None:
        """Connections go silent; new ones hang, or are refused."""
        self.stall()
        if refuse:
            self._refuse()

    def reset(self, *, new: bool = False) -> None:
        """RST for every connection, to both ends; ``new``: for each new one as well, until ``heal``."""
        self._reset_new = new
        for task, link in self._links.items():
            self._abort(task, link)

    def heal(self) -> None:
        """End all faults. Connections that hang go on; those that were ended do not come back."""
        self._reset_new = False
        if self._seat is not None and self._listener is None:
            self._listen()
        self.up.heal()
        self.down.heal()

    # -- connections ----------------------------------------------------------------------------------------------

    def _bind(self) -> socket.socket:
        """Two sockets may have the port, so that it stays ours while one of them listens, or none."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((self.host, self.port))
        return sock

    def _listen(self) -> None:
        self._listener = self._bind()
        self._listener.listen(128)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _refuse(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(BlockingIOError, ConnectionError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            link = Link(client, self._target, self.up, self.down, f"{self.seed}/{self.connections}")
            task = asyncio.get_running_loop().create_task(link.run())
            self._links[task] = link
            task.add_done_callback(self._ended)
            if self._reset_new:
                self._abort(task, link)

    @staticmethod
    def _abort(task: asyncio.Task[None], link: Link) -> None:
        link.hard = True
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        link = self._links.pop(task)
        link.close()
        self.resets += link.hard
        self.unreachable += link.unreachable
        if not task.cancelled():
            task.result()  # a bug of ours shall be seen
