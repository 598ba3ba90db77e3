"""Devices on an engine: to durable handlers and back, and what MQTT promises them."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from tests.gateway.devices import Device, Got, app, engine
from tests.servers import Missing, unavailable
from tests.servers.base import HOST, binary
from tests.transports.consuming import until

from tidings import Message, Topic
from tidings.gateway.engine import add, remove

COMMAND = Topic("commands.a", dict)
LED = Topic("commands.a.led", dict)


async def test_a_device_reaches_a_durable_handler_and_is_reached(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop, got = app(running), list[Message[bytes]]()

        @shop.on("sensors.{device}.temperature")
        async def heard(message: Message[bytes]) -> None:
            got.append(message)

        async with shop, Device(running, "a") as a:
            assert await a.subscribe("commands/a/#") == 1
            await a.publish("sensors/a/temperature", b"21.5", 1)
            await until(lambda: len(got) == 1)
            assert (got[0].topic, got[0].body, got[0].headers) == ("sensors.a.temperature", b"21.5", None)
            await shop.publish(COMMAND, {"led": 1}, headers={"note": "dropped by MQTT 3.1.1"})
            await shop.publish(LED, {"on": True})
            await until(lambda: len(a.got) == 2)
            assert sorted(a.got) == [Got("commands/a", b'{"led":1}', 1), Got("commands/a/led", b'{"on":true}', 1)]


async def test_what_is_acknowledged_is_stored_where_handlers_read(tmp_path: Path) -> None:
    """The copy whose storing is acknowledged lies behind the other, in the same stream."""
    async with engine(tmp_path) as running, Device(running, "a") as a:
        for quality in (1, 2):
            topic = f"sensors/q{quality}"
            await a.publish(topic, b"x", quality)
            async with app(running).connect() as shop:
                client = shop.bus().client.jetstream()
                subject = topic.replace("/", ".")
                first = await client.get_last_msg("$MQTT_msgs", subject)
                second = await client.get_last_msg("$MQTT_msgs", f"$MQTT.msgs.{subject}")
                assert first.seq + 1 == second.seq


async def test_commands_wait_for_a_device_that_is_away_and_come_once(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop = app(running)
        async with shop.connect():
            async with Device(running, "a", clean=False) as a:
                await a.subscribe("commands/a", 1)
            await shop.publish(COMMAND, {"n": 1})
            await shop.publish(COMMAND, {"n": 2}, delay=0.05)
            async with Device(running, "a", clean=False) as a, Device(running, "b") as b:
                await b.subscribe("commands/a", 0)
                await shop.publish(COMMAND, {"n": 3})
                await until(lambda: len(a.got) >= 3 and b.got)
                await a.publish("sensors/a", b"")  # what came before its acknowledgement is all there is
                assert sorted(got.body for got in a.got) == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
                assert b.got == [Got("commands/a", b'{"n":3}', 0)]


async def test_a_handler_of_everything_gets_what_devices_send_once(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop, got = app(running), list[str]()

        @shop.on(">")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.topic)

        async with shop, Device(running) as a:
            for quality in (0, 1, 2, 1):
                await a.publish(f"sensors/q{quality}", b"x", quality)
            await until(lambda: len(got) >= 4)
            assert sorted(got) == ["sensors.q0", "sensors.q1", "sensors.q1", "sensors.q2"]
            listed = await shop.bus().topics(">")
            assert {info.name: info.messages for info in listed if info.name[0] != "_"} == {
                "sensors.q0": 1,
                "sensors.q1": 2,
                "sensors.q2": 1,
            }


async def test_names_and_bodies_that_are_not_ours(tmp_path: Path) -> None:
    sent = {
        "sensors/1.5/x": b"a level with a dot",
        "sensors//x": b"an empty level",
        "sensors/küche": b"not ASCII",
        "sensors/empty": b"",
        "sensors/large": b"x" * 900_000,
    }
    topics = ["sensors.1//5.x", "sensors./.x", "sensors.küche", "sensors.empty", "sensors.large"]
    async with engine(tmp_path) as running:
        shop, got, failed = app(running), dict[str, bytes](), set[str]()

        @shop.on("sensors.>")
        async def heard(message: Message[bytes]) -> None:
            if message.topic not in failed:  # goes back as a copy, and by the dead letters' road
                failed.add(message.topic)
                raise ValueError("once more")
            got[message.topic] = message.body

        async with shop, Device(running, "a") as a:
            for topic, body in sent.items():
                await a.publish(topic, body)
            await until(lambda: len(got) == len(sent))
            assert got == dict(zip(topics, sent.values(), strict=True))


async def test_a_space_in_a_topic_is_refused_by_a_disconnect(tmp_path: Path) -> None:
    async with engine(tmp_path) as running, Device(running, "a") as a:
        a.client.publish("sensors/living room", b"x", 0)
        await until(a.lost.is_set)


async def test_retained_messages_and_their_removal(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop, got = app(running), list[bytes]()

        @shop.on("devices.>")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.body)

        async with shop, Device(running, "a") as a:
            await a.publish("devices/a/state", b"on", 1, retain=True)
            async with Device(running, "b") as b:
                await b.subscribe("devices/#")
                await until(lambda: b.got == [Got("devices/a/state", b"on", 1, True)])
            await a.publish("devices/a/state", b"", 1, retain=True)
            async with Device(running, "c") as c:
                await c.subscribe("devices/#")
                await a.publish("devices/a/last", b"", 1)
                await until(lambda: c.got == [Got("devices/a/last", b"", 1)])
            await until(lambda: got == [b"on", b"", b""])


async def test_a_last_will_reaches_handlers_and_devices(tmp_path: Path) -> None:
    async with engine(tmp_path) as running:
        shop, got = app(running), list[bytes]()

        @shop.on("devices.a.state")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.body)

        async with shop, Device(running, "b") as b:
            await b.subscribe("devices/+/state")
            a = Device(running, "a", will=("devices/a/state", b"gone", 1, True))
            async with a:
                a.die()
                await until(lambda: got == [b"gone"] and b.got == [Got("devices/a/state", b"gone", 1)])


async def test_rights_are_what_was_written_and_change_while_it_runs(tmp_path: Path) -> None:
    secret = add(tmp_path, "meter", publish=["meters.m.>"], subscribe=["commands.m.>"])
    async with engine(tmp_path) as running:
        shop, got = app(running), list[str]()

        @shop.on("meters.>")
        async def heard(message: Message[bytes]) -> None:
            got.append(message.topic)

        for name, password in (("", ""), ("meter", "wrong"), ("nobody", secret), ("anonymous", "x")):
            with pytest.raises(ConnectionRefusedError):
                async with Device(running, name, password):
                    pass
        async with shop, Device(running, "m-1", secret, user="meter") as m:
            assert await m.subscribe("commands/m/#") == 1
            for pattern in ("#", "commands/#", "meters/m/1", "$MQTT/#", "$MQTT/sub/#", "$JS/#", "$SYS/#", "_group/#"):
                assert await m.subscribe(pattern) == 128, pattern
            await m.publish("meters/other/1", b"not stored, though MQTT 3.1.1 has no way to say so")
            await m.publish("$JS/API/STREAM/DELETE/$MQTT_msgs", b"")
            await m.publish("meters/m/1", b"x")
            await until(lambda: got)
            assert got == ["meters.m.1"]
            second = add(tmp_path, "pump", publish=["pumps.>"])
            remove(tmp_path, "meter")
            await until(m.lost.is_set)
            await until(lambda: "pumps" in (tmp_path / "topics").read_text().split())
            async with Device(running, "pump", second) as pump:
                await pump.publish("pumps/1", b"x")
                remove(tmp_path, "pump")
                await until(pump.lost.is_set)
            with pytest.raises(ConnectionRefusedError):  # the last is gone, and nobody else came in its place
                async with Device(running):
                    pass


async def test_mosquittos_clients(tmp_path: Path) -> None:
    try:
        publish, subscribe = binary("mosquitto_pub"), binary("mosquitto_sub")
    except Missing as missing:
        unavailable(str(missing))
    async with engine(tmp_path) as running:
        shop = app(running)
        where = ["-h", HOST, "-p", str(running.options.mqtt), "-q", "1"]

        @shop.on("sensors.{device}.temperature")
        async def heard(message: Message[bytes]) -> None:
            await shop.publish(COMMAND, {"seen": float(message.body)})

        async with shop:
            session = [subscribe, *where, "-i", "a", "-c", "-t", "commands/a"]
            for command in ([*session, "-E"], [publish, *where, "-t", "sensors/a/temperature", "-m", "21.5"]):
                assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0
            again = [*session, "-C", "1", "-W", "20"]
            listening = await asyncio.create_subprocess_exec(*again, stdout=subprocess.PIPE)
            got, _ = await listening.communicate()
            assert got == b'{"seen":21.5}\n'
