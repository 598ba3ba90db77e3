"""Served buses: a process that opens them to gRPC when it is told to, and is told by lines of JSON.

``python -m tests.conformance.serving URL ADDRESS`` serves one bus, until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from tests.servers.base import HOST, free_port

from tidings import App
from tidings.gateway import Gateway, Limits
from tidings.gateway.access import Access
from tidings.gateway.rpc import RPCServer, serve_grpc
from tidings.testing.conformance import Bus
from tidings.transports.grpc import GRPC

ROOT = Path(__file__).parents[2]


class Servers:
    """The process, and what it serves. It ends when this one does."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.conformance.serving"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _asked(self, what: str, value: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, value]) + "\n")
        line = self.process.stdout.readline()
        assert line, "the serving process has ended"
        return str(json.loads(line))

    def serve(self, url: str) -> str:
        """Where the bus at ``url`` is served from now on."""
        return self._asked("serve", url)

    def stop(self, address: str) -> None:
        self._asked("stop", address)


@cache
def servers() -> Servers:
    """Those of this session."""
    return Servers()


class Served:
    """One bus, served once for each lease that is asked for."""

    def __init__(self, url: str, **options: str) -> None:
        self.url, self.options, self.ports = url, options, dict[float, str]()

    def at(self, lease: float) -> str:
        if lease not in self.ports:
            query = "&".join(f"{name}={value}" for name, value in {**self.options, "lease": f"{lease}s"}.items())
            self.ports[lease] = servers().serve(f"{self.url}?{query}")
        return self.ports[lease]

    def bus(self) -> Bus:
        return Bus(
            options=lambda lease: GRPC.from_url(f"grpc://{self.at(lease)}"),
            url=lambda lease: f"grpc://{self.at(lease)}",
            orphaned=1.0,
            patience=2.0,
        )

    def close(self) -> None:
        for address in self.ports.values():
            servers().stop(address)


class Killable:
    """A server in a process of its own, at an address that stays."""

    def __init__(self, url: str) -> None:
        self.url, self.port = url, free_port()
        self.address = f"{HOST}:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        """Listens when it returns."""
        command = [sys.executable, "-m", "tests.conformance.serving", self.url, self.address]
        self.process = await asyncio.to_thread(subprocess.Popen, command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert await asyncio.to_thread(self.process.stdout.readline), "the server did not start"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()


@asynccontextmanager
async def killable(url: str) -> AsyncIterator[Killable]:
    server = Killable(url)
    try:
        await server.start()
        yield server
    finally:
        server.kill()


async def alone(url: str, address: str) -> None:
    async with Gateway(App("gateway", url)) as gateway:
        server = await serve_grpc(gateway, Access(), address)
        print(server.address, flush=True)
        await asyncio.Event().wait()


async def main() -> None:
    running = dict[str, tuple[RPCServer, Gateway]]()
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, value = json.loads(line)
        if what == "serve":
            gateway = Gateway(App("gateway", value), Limits())
            await gateway.open()
            server = await serve_grpc(gateway, Access(), "127.0.0.1:0")
            running[server.address] = server, gateway
            value = server.address
        else:
            server, gateway = running.pop(value)
            await server.stop(1.0)
            await gateway.close()
        print(json.dumps(value), flush=True)
    for server, gateway in running.values():
        await server.stop(0.0)
        await gateway.close()


if __name__ == "__main__":
    asyncio.run(alone(*sys.argv[1:]) if len(sys.argv) > 1 else main())
