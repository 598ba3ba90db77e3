"""Servers that are killed while clients stream: what was accepted arrives, whoever was killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.servers.base import HOST, free_port
from websockets.exceptions import WebSocketException

from .streaming import Events, following, talking

pytestmark = pytest.mark.slow

MESSAGES, KILLS = 200, (50, 120)  # how many have come when the server is killed
TIDINGS = str(Path(sys.executable).with_name("tidings"))
LOST = (httpx.TransportError, OSError, WebSocketException, AssertionError, TimeoutError)


class Killed:
    """``tidings serve``, a process of its own, started again on the same port and file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.bus = f"sqlite:///{folder / 'bus.db'}"
        self.url = f"http://{HOST}:{self.port}"
        self.kills = 0
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> subprocess.Popen[bytes]:
        command = [TIDINGS, "serve", "--url", f"{self.bus}?lease=2s", "--port", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def group(self) -> Any:
        """What the bus says of its only group."""
        asked = subprocess.run([TIDINGS, "groups", "--json", "--url", self.bus], capture_output=True, check=True)
        (group,) = json.loads(asked.stdout)
        return group

    async def start(self) -> None:
        self.process = self.launch()
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=self.url) as client:
            while True:
                with suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                assert self.process.poll() is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        self.kill_now()
        self.kills += 1
        await self.start()

    def kill_now(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def killed(folder: Path) -> Iterator[Killed]:
    server = Killed(folder)
    try:
        yield server
    finally:
        server.kill_now()


async def publish(server: Killed) -> None:
    """Numbers, one after the other, each until it is accepted."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        for number in range(MESSAGES):
            headers, accepted = {"idempotency-key": f"n-{number}"}, False
            while not accepted:
                try:
                    accepted = (await client.post("/topics/numbers", json=number, headers=headers)).status_code == 202
                except httpx.TransportError:
                    await asyncio.sleep(0.02)


async def test_events_resume_with_nothing_missing(tmp_path: Path) -> None:
    """Kills are asked for by what has come; who reads knows nothing but its last id."""
    with killed(tmp_path) as server:
        await server.start()
        got, ids = list[int](), list[int]()
        last: dict[str, str] = {"after": "0"}

        async def read(events: Events) -> None:
            while len(set(got)) < MESSAGES:
                (told,) = await events.take(1)
                assert told.event == ""
                got.append(told.message)
                ids.append(int(told.id or 0))
                last.clear()
                last["last"] = str(told.id)

        async def follow() -> None:
            while len(set(got)) < MESSAGES:
                with suppress(*LOST):
                    async with (
                        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
                        following(http, "numbers", **last) as events,
                    ):
                        await read(events)
                await asyncio.sleep(0.02)

        await everything(server, got, follow())
        assert sorted(set(got)) == list(range(MESSAGES))
        assert ids == sorted(set(ids))  # each once, in the order of the log
        assert server.kills == len(KILLS)


async def test_a_groups_messages_are_acknowledged_by_somebody(tmp_path: Path) -> None:
    """Two members over WebSocket; one leaves without a word now and then."""
    with killed(tmp_path) as server:
        await server.start()
        came, got = list[int](), list[int]()

        async def join(patience: int) -> None:
            async with talking(server.url) as talk:
                asked = {"id": "g", "pattern": "numbers", "group": "g", "start": 0, "credit": 20}
                await talk.say(subscribe=asked)
                await talk.hear("subscribed")
                for count in range(1, 10_000):
                    message: Any = await talk.hear("message")
                    came.append(message["event"]["data"])
                    if count == patience:
                        talk.connection.transport.abort()
                        return
                    await talk.say(ack={"id": "g", "numbers": [message["number"]]})
                    got.append(message["event"]["data"])

        async def member(patience: int) -> None:
            while True:
                with suppress(*LOST):
                    await join(patience)
                await asyncio.sleep(0.02)

        async def both() -> None:
            members = [asyncio.create_task(member(patience)) for patience in (25, 0)]
            while len(set(got)) < MESSAGES:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            for task in members:
                task.cancel()

        await everything(server, got, both())
        assert set(got) == set(range(MESSAGES))
        assert len(came) > len(set(came))  # what was not acknowledged came again
        assert server.kills == len(KILLS)
        group = server.group()
        assert (group["lag"], group["dead"]) == (0, 0)


async def everything(server: Killed, got: list[int], reading: Any) -> None:
    """Publish, read, and kill, until all has come."""

    async def kill() -> None:
        for many in KILLS:
            while len(got) < many:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await server.kill()

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for work in (publish(server), reading, kill()):
            group.create_task(work)
