"""TLS as ``docs/security.md`` has it: its commands are run, its configuration is served."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc import aio
from msgspec.structs import asdict, replace
from tests.house.terminals import blocks
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tidings.gateway.listening import tls_context
from tidings.gateway.settings import TLS, load
from tidings.kernel.errors import InvalidOption
from tidings.transports.grpc.wire import BUS, pb

from .serving import DEADLINE, Running, served

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
COMMANDS = [line.removeprefix("$ ") for line in PAGE.splitlines() if line.startswith("$ openssl ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of the page, and its configuration."""
    made = tmp_path_factory.mktemp("tls")
    for command in COMMANDS:
        subprocess.run(command, shell=True, cwd=made, check=True)
    (configuration,) = [block.text for block in blocks(PAGE) if block.title == "tidings.toml"]
    (made / "tidings.toml").write_text(configuration)
    return made


@asynccontextmanager
async def secured(folder: Path, **tls: Any) -> AsyncIterator[Running]:
    settings = load(folder / "tidings.toml", {"port": 0, "grpc": ["127.0.0.1:0"]}, {})
    settings = replace(settings, tls=replace(settings.tls, **tls))
    async with served(**asdict(settings)) as running:
        yield running


def client_context(folder: Path, who: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if who:
        context.load_cert_chain(folder / f"{who}.pem", folder / f"{who}.key")
    return context


async def status(running: Running, context: ssl.SSLContext, topic: str = "orders.placed") -> int:
    async with httpx.AsyncClient(verify=context, base_url=running.url, timeout=DEADLINE) as client:
        return (await client.post(f"/topics/{topic}", json=1)).status_code


async def test_a_certificate_says_who_comes(folder: Path) -> None:
    async with secured(folder) as running:
        assert running.url.startswith("https://127.0.0.1:")
        assert await status(running, client_context(folder)) == 401
        till = client_context(folder, "till")
        assert await status(running, till) == 202
        assert await status(running, till, "stock.sold") == 403
        assert await status(running, client_context(folder, "server")) == 401  # of our authority, and not known
        with pytest.raises(httpx.ConnectError):
            await status(running, ssl.create_default_context())


async def test_a_certificate_opens_a_websocket(folder: Path) -> None:
    async with secured(folder) as running:
        url = running.url.replace("https", "wss") + "/ws"
        with pytest.raises(InvalidStatus, match="401"):
            await connect(url, ssl=client_context(folder), proxy=None)
        async with connect(url, ssl=client_context(folder, "till"), proxy=None) as socket:
            await socket.send(json.dumps({"publish": {"id": "1", "topic": "orders.placed", "data": 1}}))
            async with asyncio.timeout(DEADLINE):
                assert "error" not in json.loads(await socket.recv())


async def test_a_certificate_calls(folder: Path) -> None:
    authority, request = (folder / "ca.pem").read_bytes(), pb.PublishRequest(messages=[{"topic": "orders.placed"}])
    pair = [(folder / f"till.{kind}").read_bytes() for kind in ("key", "pem")]
    async with secured(folder) as running:
        (address,) = running.told.grpc
        for given, expected in ((pair, None), ((None, None), grpc.StatusCode.UNAVAILABLE)):
            async with aio.secure_channel(address, grpc.ssl_channel_credentials(authority, *given)) as channel:
                types = (pb.PublishRequest.SerializeToString, pb.PublishResponse.FromString)
                call = channel.unary_unary(f"/{BUS}/Publish", *types)(request, timeout=DEADLINE)
                if expected is None:
                    assert len((await call).ids) == 1
                else:
                    with pytest.raises(aio.AioRpcError) as refused:
                        await call
                    assert refused.value.code() is expected


async def test_where_one_is_required_nobody_comes_without(folder: Path) -> None:
    async with secured(folder, required=True) as running:
        assert await status(running, client_context(folder, "till")) == 202
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            await status(running, client_context(folder))


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"cert": "no.pem", "key": "server.key"}, "cannot be set up with"),
        ({"cert": "server.pem", "key": "till.key"}, "cannot be set up with"),
        ({"cert": "server.key", "key": "server.key"}, "cannot be set up with"),
        ({"cert": "server.pem", "key": "server.key", "clients": "server.key"}, "cannot be set up with"),
        ({"key": "server.key"}, "TLS has no certificate"),
    ],
)
def test_what_is_wrong_with_files_is_said(folder: Path, files: dict[str, str], what: str) -> None:
    with pytest.raises(InvalidOption, match=what):
        tls_context(TLS(**{name: str(folder / file) for name, file in files.items()}))


def test_a_key_with_a_password_does_not_ask_at_a_terminal(folder: Path) -> None:
    command = "openssl ec -in server.key -aes256 -passout pass:secret -out locked.key"
    subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)
    with pytest.raises(InvalidOption) as raised:
        tls_context(TLS(cert=str(folder / "server.pem"), key=str(folder / "locked.key")))
    assert "password" in raised.value.why


def test_required_without_an_authority(folder: Path) -> None:
    with pytest.raises(InvalidOption, match="no authority"):
        tls_context(TLS(cert=str(folder / "server.pem"), key=str(folder / "server.key"), required=True))


def test_there_is_no_tls_unless_it_is_asked_for() -> None:
    assert tls_context(TLS()) is None
