"""The server is killed while many publish: what was answered by 202 is on the bus."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL
from itertools import count
from pathlib import Path

import httpx
import pytest
from tests.servers.base import free_port
from tests.state.stores import opened
from tests.transports.consuming import until

from .over_http import DEADLINE, asking

KILLS, MORE = 4, 150  # messages accepted between two kills


async def started(url: str, port: int, folder: Path) -> asyncio.subprocess.Process:
    command = [str(Path(sys.executable).with_name("tidings")), "serve", "--url", url, "--port", str(port)]
    server = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=DEVNULL, stderr=DEVNULL)
    async with asking(f"http://127.0.0.1:{port}") as http:
        while True:
            assert server.returncode is None
            try:
                if (await http.get("/readyz")).status_code == 200:
                    return server
            except httpx.TransportError:
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_what_was_accepted_survives_kills(tmp_path: Path) -> None:
    url, port, numbers, accepted = f"sqlite:///{tmp_path}/bus.db", free_port(), count(), list[str]()

    async def publish() -> None:
        async with asking(f"http://127.0.0.1:{port}") as http:
            for number in numbers:
                many = {"content": b"1\n2\n3", "headers": {"content-type": "application/x-ndjson"}}
                given = many if number % 3 else {"json": number, "headers": {}}
                given["headers"]["idempotency-key"] = f"n{number}"
                try:
                    answer = await http.post("/topics/a.b", **given)  # type: ignore[arg-type]
                except httpx.TransportError:
                    await asyncio.sleep(0.01)
                    continue
                assert answer.status_code == 202
                accepted.extend(answer.json()["ids"])

    server = await started(url, port, tmp_path)
    clients = [asyncio.create_task(publish()) for _ in range(8)]
    try:
        for _ in range(KILLS):
            before = len(accepted)
            await until(lambda before=before: len(accepted) >= before + MORE, within=DEADLINE)
            server.kill()
            await server.wait()
            server = await started(url, port, tmp_path)
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        server.kill()
        await server.wait()
    assert all(client.cancelled() for client in clients)
    async with opened(url) as bus:
        stored, after = list[str](), 0
        while page := await bus.peek("a.b", after, 1000):
            after = page[-1].position
            stored += [found.message.id for found in page]
    assert len(accepted) >= KILLS * MORE
    assert set(accepted) <= set(stored)
    assert len(stored) == len(set(stored))
