"""The server itself: where it listens, whom it lets in, how it stops, what it does not wait for."""

from __future__ import annotations

import asyncio
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.transports.consuming import until

from tidings import App
from tidings.gateway.connections import HEAD
from tidings.gateway.limits import Limits
from tidings.gateway.listening import is_loopback, refuse_open_doors
from tidings.gateway.rights import EVERYTHING, Rights
from tidings.gateway.settings import TLS, Settings
from tidings.gateway.web import SPARE
from tidings.kernel.errors import BusUnavailable, InvalidOption

from .serving import DEADLINE, known, served


async def _said(reader: asyncio.StreamReader) -> str:
    return (await asyncio.wait_for(reader.read(), DEADLINE)).decode()


async def _opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _until(client: httpx.AsyncClient, path: str, status: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- where


async def test_a_unix_socket_is_for_this_user_and_its_group(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with served(socket=str(path)) as running:
        assert running.told.http[1] == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            assert (await client.get("http://any.name/healthz")).json() == {"status": "alive"}
        with pytest.raises(InvalidOption, match=r"listens on .* already"):
            async with served(socket=str(path)):
                pass
    assert not path.exists()


async def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with served(socket=str(path)):
        assert path.is_socket()


async def test_where_it_cannot_listen_is_said(tmp_path: Path) -> None:
    async with served() as running:
        port = int(running.url.rpartition(":")[2])
        with pytest.raises(InvalidOption, match=f"127.0.0.1:{port} cannot be listened on"):
            async with served(port=port):
                pass
    for wrong in (
        {"host": "no.such.host.invalid"},
        {"host": "192.0.2.1", "insecure": True},
        {"socket": str(tmp_path / "no" / "s")},
    ):
        with pytest.raises(InvalidOption, match="cannot be listened on"):
            async with served(**{"insecure": True} | wrong):
                pass


async def test_a_bus_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable):
        async with served(App("gateway", f"sqlite:///{tmp_path}/no/bus.db")):
            pass


# -- who


@pytest.mark.parametrize("open_to_all", [{"host": "0.0.0.0"}, {"host": ""}, {"host": "::"}, {"grpc": ("0.0.0.0:1",)}])
def test_beyond_this_machine_nobody_comes_without_saying_who_it_is(
    open_to_all: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(**open_to_all)
    with pytest.raises(InvalidOption, match="nobody has to say who it is") as raised:
        refuse_open_doors(settings, EVERYTHING)
    assert "tidings token add" in raised.value.mend
    for anonymous in (Rights(member=True), Rights(admin=True)):
        with pytest.raises(InvalidOption):
            refuse_open_doors(settings, anonymous)
    refuse_open_doors(settings, None)
    refuse_open_doors(settings, Rights(subscribe=("public.>",)))
    caplog.clear()
    refuse_open_doors(Settings(**open_to_all, insecure=True), EVERYTHING)
    assert "everybody who can reach it can do everything there" in caplog.text
    assert "without TLS, tokens and messages can be read on their way" in caplog.text


async def test_it_does_not_even_begin_to_listen_there() -> None:
    with pytest.raises(InvalidOption, match="nobody has to say who it is"):
        async with served(host="0.0.0.0"):
            pass
    with pytest.raises(InvalidOption, match="tokens could be read on their way"):
        async with served(host="0.0.0.0", clients=(known("shop", publish=("a",)),)):
            pass
    async with served(host="0.0.0.0", clients=(known("shop", publish=("a",)),), tls=TLS(proxy=True)) as running:
        assert running.told.closed


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost.", True),
        ("0.0.0.0", False),
        ("", False),
        ("10.0.0.1", False),
        ("::", False),
        ("localhost.example", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here


async def test_who_is_known_closes_the_door_for_others() -> None:
    clients, few = (known("shop", publish=("orders.>",)),), Rights(publish=("public.>",))
    async with served(clients=clients) as running, running.client() as stranger, running.client("shop") as shop:
        assert (await stranger.post("/topics/orders.placed", json=1)).status_code == 401
        assert (await shop.post("/topics/orders.placed", json=1)).status_code == 202
    async with served(clients=clients, anonymous=few) as running, running.client() as stranger:
        assert (await stranger.post("/topics/orders.placed", json=1)).status_code == 403
        assert (await stranger.post("/topics/public.a", json=1)).status_code == 202


# -- what it does not wait for


async def test_a_head_that_does_not_end() -> None:
    async with served(limits=Limits(patience=0.2)) as running:
        reader, writer = await _opened(running.url)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-a: b\r\n")
        assert (await _said(reader)).startswith("HTTP/1.1 408 ")
        writer.close()


async def test_a_connection_on_which_nothing_is_said() -> None:
    async with served(limits=Limits(patience=0.2)) as running:
        reader, writer = await _opened(running.url)
        assert (await _said(reader)).startswith("HTTP/1.1 408 ")
        writer.close()


async def test_a_head_that_is_too_large() -> None:
    async with served() as running:
        reader, writer = await _opened(running.url)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-a: " + b"b" * 20 * HEAD)
        with suppress(ConnectionError):  # what was sent in vain may reset the connection before it is answered
            assert (await _said(reader)).startswith("HTTP/1.1 431 ")
        writer.close()


async def test_a_body_that_does_not_come() -> None:
    async with served(limits=Limits(patience=0.2)) as running:
        reader, writer = await _opened(running.url)
        writer.write(b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n1")
        assert (await _said(reader)).startswith("HTTP/1.1 408 ")
        writer.close()


async def test_one_request_after_another_on_one_connection() -> None:
    async with served() as running:
        reader, writer = await _opened(running.url)
        one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for _ in range(3):
            writer.write(one)
            assert (await reader.readuntil(b'alive"}')).startswith(b"HTTP/1.1 200 ")
        writer.write(one + one + one[:20])
        for _ in range(2):
            await reader.readuntil(b'alive"}')
        writer.write(one[20:])
        await reader.readuntil(b'alive"}')
        writer.close()


@pytest.mark.parametrize("rest", [b"\r\n", b"\r\n\r\n", b"GET /"])
async def test_what_is_less_than_a_request_holds_no_connection_that_was_idle(rest: bytes) -> None:
    async with served(limits=Limits(patience=0.2)) as running:
        reader, writer = await _opened(running.url)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b'alive"}')
        writer.write(rest)
        assert (await _said(reader)).startswith("HTTP/1.1 408 ")
        writer.close()


async def test_more_connections_than_it_takes_are_told_so() -> None:
    limits = Limits(connections=1)
    async with served(limits=limits) as running:
        opened = [await _opened(running.url) for _ in range(limits.connections + SPARE)]
        reader, writer = await _opened(running.url)
        assert (await _said(reader)).startswith("HTTP/1.1 503 ")
        for _, each in opened:
            each.close()
        writer.close()
        async with running.client() as client:
            await _until(client, "/healthz", 200)  # it has not seen all of them go


# -- how it stops


async def test_requests_are_finished_and_then_nobody_listens() -> None:
    async with served() as running, running.client() as other:
        reader, writer = await _opened(running.url)
        writer.write(b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")  # the app reads the body
        running.task.cancel()
        with suppress(httpx.ConnectError):
            await _until(other, "/readyz", 503)
        writer.write(b"12")
        assert (await _said(reader)).startswith("HTTP/1.1 202 ")
        writer.close()
        await running.stop()
        with pytest.raises(httpx.ConnectError):
            await other.get("/healthz")


async def test_streams_are_told(tmp_path: Path) -> None:
    async with served(App("gateway", f"sqlite:///{tmp_path}/bus.db")) as running, running.client() as client:
        async with client.stream("GET", "/topics/a") as stream:
            lines = stream.aiter_lines()
            assert (await client.post("/topics/a", json="first")).status_code == 202
            while "first" not in (await anext(lines)):
                pass
            running.task.cancel()
            async for _ in lines:
                pass
        await asyncio.wait({running.task}, timeout=DEADLINE)
        assert running.task.done()


async def test_what_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    """A client that sends its body so slowly that it is not done within the grace."""
    async with served(grace=0.2) as running:
        reader, writer = await _opened(running.url)
        writer.write(b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await running.stop()
        assert running.task.done()
        writer.close()


async def test_what_a_handler_raises_at_the_end_of_all_is_raised(tmp_path: Path) -> None:
    app = App("ends", f"sqlite:///{tmp_path}/bus.db")

    @app.on("end")
    async def end(message: int) -> None:
        app.stop()

    async with served(app) as running, running.client() as client:
        assert (await client.post("/topics/end", json=1)).status_code == 202
        await until(running.task.done)


async def test_a_name_of_another_machine_is_refused_while_everybody_may_come() -> None:
    stranger = {"host": "evil.example"}
    async with served() as running, running.client() as client:
        assert (await client.get("/healthz", headers=stranger)).status_code == 403
        assert (await client.get("/healthz", headers={"host": "localhost"})).status_code == 200
    async with served(origins=("https://evil.example",), anonymous=EVERYTHING) as running, running.client() as client:
        assert (await client.get("/healthz", headers=stranger)).status_code == 200
    async with served(clients=(known("shop"),)) as running, running.client() as client:
        assert (await client.get("/healthz", headers=stranger)).status_code == 200


async def test_nothing_tells_which_server_it_is() -> None:
    async with served() as running, running.client() as client:
        assert "server" not in (await client.get("/healthz")).headers
