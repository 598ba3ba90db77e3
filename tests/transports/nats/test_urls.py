"""What a URL says, and what is said of a wrong one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.servers import fresh
from tests.servers.base import exchange, free_port, wait_for

from tidings.kernel.errors import BusUnavailable, InvalidOption, InvalidURL
from tidings.transports.nats import NATS


def test_hosts_and_login() -> None:
    options = NATS.from_url("nats://me:s%40cret@one,two:4333?namespace=shop&replicas=3&lease=5s&provision=false")
    assert options.servers == (("one", 4222), ("two", 4333))
    assert (options.user, options.password, options.namespace, options.replicas) == ("me", "s@cret", "shop", 3)
    assert options.provision is False
    assert options.connecting()["servers"] == ["nats://one:4222", "nats://two:4333"]
    assert NATS.from_url("nats://token@one").connecting()["token"] == "token"
    assert NATS.from_url("nats+tls://one").connecting()["servers"] == ["tls://one:4222"]
    assert NATS.from_url("nats://").servers == (("localhost", 4222),)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nats://host?leese=3s", "lease"),
        ("nats://host/path", "namespace"),
        ("nats://host:0", "host:0"),
        ("nats://host?replicas=many", "replicas"),
        ("nats://host?storage=tape", "storage"),
        ("nats://host?namespace=a.b", "namespace"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, told: str) -> None:
    with pytest.raises(InvalidURL) as refusal:
        NATS.from_url(url)
    assert told in str(refusal.value)


def test_a_lease_must_be_a_duration() -> None:
    with pytest.raises((InvalidOption, InvalidURL)):
        NATS.from_url("nats://host?lease=soon").transport()


async def test_nobody_there() -> None:
    began = time.monotonic()
    with pytest.raises(BusUnavailable) as refusal:
        await NATS.from_url("nats://127.0.0.1:1").transport().open(lambda event: None)
    assert "127.0.0.1:1" in str(refusal.value)
    assert time.monotonic() - began < 10


async def test_a_wrong_password_is_told_and_not_shown() -> None:
    with fresh("nats", authorization={"user": "me", "password": "right"}) as mine:
        where = mine.url.partition("://")[2]
        with pytest.raises(BusUnavailable) as refusal:
            await NATS.from_url(f"nats://me:wrong@{where}").transport().open(lambda event: None)
        assert "uthorization" in str(refusal.value)
        assert "wrong" not in str(refusal.value)
        right = NATS.from_url(f"nats://me:right@{where}").transport()
        await right.open(lambda event: None)
        await right.close()


async def test_without_jetstream(tmp_path: Path) -> None:
    port = free_port()
    program = Path(sys.executable).with_name("nats-server")
    server = subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await asyncio.to_thread(wait_for, lambda: exchange(port, b"", b"INFO "), 10.0)
        with pytest.raises(BusUnavailable, match="JetStream"):
            await NATS.from_url(f"nats://127.0.0.1:{port}").transport().open(lambda event: None)
    finally:
        server.kill()
        server.wait()


async def test_tls_trusts_whom_it_is_told_to() -> None:
    with fresh("nats", tls=True) as mine:
        trusting = NATS.from_url(f"{mine.url}?ca={mine.tls}/ca.pem").transport()
        await trusting.open(lambda event: None)
        await trusting.close()
        with pytest.raises(BusUnavailable, match=r"(?i)certificate"):
            await NATS.from_url(mine.url).transport().open(lambda event: None)
