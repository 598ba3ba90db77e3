"""The engine's server: configured, started, watched, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import devices
from tests.gateway.devices import app, engine
from tests.servers.base import HOST, certificates, free_port
from tests.transports.consuming import until

from tidings import Message
from tidings.gateway.engine import Cluster, Device, Engine, Options, Topics, add, read, remove
from tidings.gateway.engine.configuration import configured
from tidings.gateway.engine.supervisor import CRASHES
from tidings.kernel.errors import BusReadOnly, BusUnavailable, InvalidName, InvalidOption, InvalidURL, NotFound
from tidings.transports.nats import NATS

FILES = ("app.nk", "cluster", "engine.lock", "nats.conf", "topics")
SENDERS = 50
HASH = "$2b$04$opEuLdrdXTRJVOBWU1xv4O0CeDoTFi..AqZmoIR/ecRjADupEiVTO"


def server_of(running: Engine) -> int:
    assert running.server is not None
    assert running.server.process is not None
    return running.server.process.process.pid


def told(options: Options) -> Any:
    return json.loads(Engine(options).print_config())


# -- what it is told


def test_rights_become_permissions_of_subjects() -> None:
    meter = Device(name="meter", password=HASH, publish=("sensors.m.>",), subscribe=("commands.m.>", "time"))
    assert meter.permissions() == {
        "publish": {"allow": ["sensors.m.>"]},
        "subscribe": {"allow": ["commands.m.>", "time", "commands.m", "$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]},
    }


@pytest.mark.parametrize("pattern", [">", "*.x", "_group.>", "$JS.>", "sensors/#", "a b", "{room}.x", ""])
def test_a_right_begins_with_a_name(pattern: str) -> None:
    for rights in ({"publish": (pattern,)}, {"subscribe": (pattern,)}):
        with pytest.raises(InvalidName):
            Topics(**rights)


def test_a_device_has_a_name_and_one_way_to_log_in() -> None:
    for wrong in ("", "a b", "anonymous", "x" * 129):
        with pytest.raises(InvalidName):
            Device(name=wrong, password=HASH)
    for ways in ({}, {"password": HASH, "certificate": "CN=a"}, {"password": "plain"}):
        with pytest.raises(InvalidOption) as refused:
            Device(name="a", **ways)
        assert "plain" not in str(refused.value)


def test_devices_are_kept_without_their_passwords(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    secret = add(folder, "a", publish=["sensors.a.>"])
    assert add(folder, "b") != secret
    with pytest.raises(InvalidOption, match="there is a device 'a'"):
        add(folder, "a")
    assert [(device.name, device.publish) for device in read(folder) or ()] == [("a", ("sensors.a.>",)), ("b", ())]
    file = folder / "devices.json"
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    remove(folder, "b")
    with pytest.raises(NotFound, match="no device 'b'"):
        remove(folder, "b")
    with pytest.raises(InvalidName):
        add(folder, "c", publish=[">"])
    assert [device.name for device in read(folder) or ()] == ["a"]
    assert read(tmp_path) is None
    file.write_text("{")
    with pytest.raises(InvalidOption, match="cannot be read"):
        read(folder)


def test_nothing_is_open_to_a_network_by_mistake(tmp_path: Path) -> None:
    device, tls = Device(name="a", password=HASH), {"cert": "server.pem", "key": "server.key"}
    data = str(tmp_path)
    for host in ("0.0.0.0", "", "::", "192.0.2.1"):
        with pytest.raises(InvalidOption, match="no device has to say who it is"):
            told(Options(data=data, host=host, **tls))
        with pytest.raises(InvalidOption, match="could be read on their way"):
            told(Options(data=data, host=host, devices=(device,)))
        told(Options(data=data, host=host, devices=(device,), **tls))
        told(Options(data=data, host=host, insecure=True))
    with pytest.raises(InvalidOption, match="certificate and its key"):
        Options(cert="server.pem")
    with pytest.raises(InvalidOption, match="could not log in"):
        told(Options(data=data, devices=(device,), clients="ca.pem", **tls))
    with pytest.raises(InvalidOption, match="two devices 'a'"):
        told(Options(data=data, devices=(device, device)))


def test_the_configuration_says_all_of_it(tmp_path: Path) -> None:
    cluster = Cluster(listen="192.0.2.1:6222", routes=("192.0.2.2:6222",), password="between us")
    device = Device(name="a", password=HASH, publish=("sensors.a",))
    conf = told(Options(data=str(tmp_path), sync="always", websocket=8083, devices=(device,), cluster=cluster))
    assert conf["jetstream"] == {"store_dir": str(tmp_path), "sync_interval": "always"}
    assert conf["listen"] == "127.0.0.1:4222"
    assert (conf["mqtt"]["host"], conf["mqtt"]["port"], conf["websocket"]["port"]) == (HOST, 1883, 8083)
    assert conf["cluster"]["routes"] == ["nats://route:hidden@192.0.2.2:6222"]
    ours, a, anyone = conf["authorization"]["users"]
    assert ours["nkey"] == "(a key that is made at the first start)"
    assert list(tmp_path.iterdir()) == []
    assert ours["allowed_connection_types"] == ["STANDARD"]
    assert (a["user"], a["password"], a["allowed_connection_types"]) == ("a", "hidden", ["MQTT", "MQTT_WS"])
    assert anyone["allowed_connection_types"] == ["LEAFNODE"]  # which nobody can be here
    run = json.loads(configured(Options(cluster=cluster), (device,), "U"))
    assert run["cluster"]["routes"] == ["nats://route:between%20us@192.0.2.2:6222"]
    assert run["authorization"]["users"][1]["password"] == HASH
    url = Options(data=str(tmp_path), commands=("commands.>", "time")).url()
    options = NATS.from_url(url)
    assert (options.stream, options.devices, options.nkey) == ("$MQTT_msgs", "commands.>,time", f"{tmp_path}/app.nk")


def test_patterns_of_devices_are_checked_when_a_bus_is_named() -> None:
    assert NATS.from_url("nats://here?devices=commands.>,time").listening == ("commands.>", "time")
    with pytest.raises(InvalidURL, match="without namespace="):
        NATS.from_url("nats://here?namespace=shop&devices=commands.>")
    with pytest.raises(InvalidName):
        NATS.from_url("nats://here?devices=commands/%23")


# -- its life


async def test_it_starts_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with engine(tmp_path, websocket=free_port()) as running:
        await running.check()
        pid = server_of(running)
        assert os.getsid(pid) == pid  # Ctrl-C in our terminal does not reach it
        names = [running.addresses[name].partition(":")[0] for name in ("apps", "mqtt", "websocket")]
        assert names == ["nats", "mqtt", "ws"]
        over = devices.Device(running, "w", transport="websockets", port=running.options.websocket)
        over.client.ws_set_options(path="/mqtt")
        async with over as w:
            await w.publish("sensors/w", b"x")
        assert {file: mode for file in FILES if (mode := stat.S_IMODE(os.stat(tmp_path / file).st_mode)) != 0o600} == {}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(BusUnavailable):
        await running.check()


async def test_what_was_acknowledged_survives_kills_of_the_server(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop, got, acknowledged = app(running), set[bytes](), set[bytes]()

        @shop.on("sensors.>", concurrency=50)
        async def heard(message: Message[bytes]) -> None:
            got.add(message.body)

        async def send(meter: devices.Device, part: int) -> None:
            for number in range(part, 100_000, SENDERS):
                body = b"%d" % number
                await meter.publish("sensors/a", body)
                acknowledged.add(body)

        async with shop, devices.Device(running, "a", clean=False) as meter:
            sending = [asyncio.ensure_future(send(meter, part)) for part in range(SENDERS)]
            for kills in (1, 2):
                enough = len(acknowledged) + 200
                await until(lambda enough=enough: len(acknowledged) >= enough)
                os.kill(server_of(running), signal.SIGKILL)
                await until(lambda kills=kills: running.server is not None and running.server.restarts == kills)
            enough = len(acknowledged) + 200
            await until(lambda: len(acknowledged) >= enough)
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            await until(lambda: acknowledged <= got, "all that was acknowledged is handled")


async def test_what_a_handler_has_is_kept_between_two_runs(tmp_path: Path) -> None:
    ports = {"port": free_port(), "mqtt": free_port()}
    async with engine(tmp_path, **ports) as running, devices.Device(running, "a", clean=False) as a:
        shop = app(running)
        shop.on("sensors.>", group="shop.hears")(_nothing)
        async with shop:
            await a.subscribe("commands/#")
    async with engine(tmp_path, **ports) as running, devices.Device(running, "a", clean=False) as a:
        await a.publish("sensors/1", b"nobody is there")
        shop, got = app(running), list[bytes]()

        @shop.on("sensors.>", group="shop.hears")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.body)

        async with shop:
            await until(lambda: got == [b"nobody is there"])


async def _nothing(message: Message[bytes]) -> None:
    pass


async def test_two_engines_never_share_a_folder(tmp_path: Path) -> None:
    async with engine(tmp_path):
        with pytest.raises(BusUnavailable, match="another engine runs on") as refused:
            async with engine(tmp_path):
                pass
        assert f"process {os.getpid()} has it" in str(refused.value)
    async with engine(tmp_path):
        pass


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    for name in ("mqtt", "port"):
        with socket.create_server((HOST, 0)) as other:
            with pytest.raises(BusUnavailable, match="a port of the engine is taken") as refused:
                async with engine(tmp_path, **{name: other.getsockname()[1]}):
                    pass
            assert str(other.getsockname()[1]) in str(refused.value)
    async with engine(tmp_path):
        pass


async def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BusReadOnly, match="folder cannot be used"):
        async with engine(tmp_path / "file"):
            pass
    (tmp_path / "app.nk").write_text("no seed")
    with pytest.raises(BusUnavailable, match="is no key"):
        async with engine(tmp_path):
            pass


@pytest.mark.slow
async def test_it_is_given_up_when_starting_again_does_not_help(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        given_up = asyncio.ensure_future(running.wait())
        for _ in range(CRASHES + 1):
            await until(lambda: running.server is not None and running.server.running)
            os.kill(server_of(running), signal.SIGKILL)
            await until(lambda: running.server is not None and not running.server.running)
        with pytest.raises(BusUnavailable, match=f"ended {CRASHES + 1} times within"):
            await asyncio.wait_for(given_up, 20)
        with pytest.raises(BusUnavailable):
            await running.check()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_server_that_is_stopped_is_not_healthy(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        os.kill(server_of(running), signal.SIGSTOP)
        await until(lambda: state(server_of(running)) == "T")
        try:
            with pytest.raises(BusUnavailable, match="takes no messages"):
                await running.check()
        finally:
            os.kill(server_of(running), signal.SIGCONT)
        await until(lambda: running._transport is not None and running._transport.ready.is_set())
        await running.check()


async def test_a_folder_is_of_one_server_or_of_a_cluster(tmp_path: Path) -> None:
    cluster = Cluster(listen=f"{HOST}:{free_port()}", routes=(f"{HOST}:{free_port()}",))
    async with engine(tmp_path):
        pass
    with pytest.raises(InvalidOption, match="is of a server alone"):
        async with engine(tmp_path, cluster=cluster):
            pass


KILLED = """
import asyncio, sys
from tidings.gateway.engine import Engine, Options

async def main():
    async with Engine(Options(data=sys.argv[1], port=int(sys.argv[2]), mqtt=int(sys.argv[3]))) as engine:
        print(engine.server.process.process.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a server outlives its engine, and the lock tells of it")
async def test_the_server_does_not_outlive_an_engine_that_is_killed(tmp_path: Path) -> None:
    ports = {"port": free_port(), "mqtt": free_port()}
    command = [sys.executable, "-c", KILLED, str(tmp_path), *map(str, ports.values())]
    killed = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    pid = int(await killed.stdout.readline())
    killed.kill()
    await killed.wait()
    async with engine(tmp_path, **ports) as running:  # waits for what is left of the other
        assert state(pid) in "Z-"
        await running.check()


def state(pid: int) -> str:
    """A letter, as ``ps`` has it; "-": there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "-"


async def test_certificates_instead_of_passwords(tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    certificates(tls)
    files = {"cert": f"{tls}/server.pem", "key": f"{tls}/server.key", "clients": f"{tls}/ca.pem"}
    client = Device(name="meter", certificate="CN=client", publish=("sensors.>",))
    async with engine(tmp_path / "data", devices=(client,), **files) as running:
        shop, got = app(running), list[bytes]()

        @shop.on("sensors.>")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.body)

        device = devices.Device(running, "a")
        device.client.tls_set(f"{tls}/ca.pem", f"{tls}/client.pem", f"{tls}/client.key")
        async with shop, device as a:
            await a.publish("sensors/a", b"x")
            await until(lambda: got == [b"x"])
        context = ssl.create_default_context(cafile=f"{tls}/ca.pem")
        with pytest.raises(ssl.SSLError):
            await shown_nothing(running, context)


async def shown_nothing(running: Engine, context: ssl.SSLContext) -> None:
    """What the server says to a client that has no certificate."""
    reader, writer = await asyncio.open_connection(HOST, running.options.mqtt, ssl=context)
    try:
        await reader.read(1)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
