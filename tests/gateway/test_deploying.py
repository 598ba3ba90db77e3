"""The files in ``deploy/``: understood by whom they are for; and what systemd is told."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidings.gateway.listening import refuse_open_doors
from tidings.gateway.rights import EVERYTHING
from tidings.gateway.settings import load
from tidings.kernel.errors import InvalidOption

from .serving import served

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "tidings-serve.service").read_text()
IMAGE = (DEPLOY / "Dockerfile").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "tidings-serve.service"
    unit.write_text(UNIT.replace("/opt/tidings/bin/tidings", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_systemd_is_told_when_it_is_ready_and_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with served():
            assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"STOPPING=1"


def test_the_image_is_configured_with_what_there_is_and_refuses_strangers() -> None:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", IMAGE, re.MULTILINE)
    variables = dict(each.split("=", 1) for each in block.replace("\\\n", " ").split())
    settings = load(None, {}, variables)
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.tokens.startswith("/var/lib/tidings/")
    with pytest.raises(InvalidOption):
        refuse_open_doors(settings, EVERYTHING)


async def test_the_image_asks_whether_it_is_ready() -> None:
    (command,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', IMAGE)
    async with served() as running:
        asked = command.replace("http://127.0.0.1:8080", running.url)
        assert asked != command
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", asked)
        assert await process.wait() == 0
