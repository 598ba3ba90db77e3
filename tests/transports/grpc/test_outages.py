"""The server is killed, stopped, restarted: what was accepted is delivered, and groups resume without loss."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from tests.conformance.serving import Killable, killable
from tests.transports.consuming import settle, take, until

from tidings import App, Topic
from tidings.kernel.errors import BusUnavailable, TidingsError
from tidings.kernel.message import Message, new_id
from tidings.kernel.transport import Settlement, Subscription
from tidings.transports.grpc import GRPC
from tidings.transports.grpc.transport import GRPCTransport
from tidings.transports.grpc.wire import BUS, pb

DEADLINE = 60.0
KILLS = 3
counted = Topic("numbers.counted", int)


def message(n: int, topic: str = "numbers.counted") -> Message[Any]:
    return Message(topic, b"%d" % n, new_id(), time=time.time(), type=topic, source="test")


@asynccontextmanager
async def joined(server: Killable, events: Counter[str] | None = None) -> AsyncIterator[GRPCTransport]:
    """A member, and what it is told."""
    found = Counter[str]() if events is None else events
    transport = GRPC(host="127.0.0.1", port=server.port, publish_wait=30.0).transport()
    await transport.open(lambda event: found.update({event.kind: event.count}))
    try:
        yield transport
    finally:
        await transport.close()


@pytest.mark.slow
async def test_an_app_resumes_when_the_server_was_killed(tmp_path: Path) -> None:
    """Under load, three times: every accepted message is handled; what was unknown goes again under its id."""
    async with asyncio.timeout(DEADLINE), killable(f"sqlite:///{tmp_path}/bus.db?lease=2s") as server:
        app, handled, accepted = App("shop", f"grpc://{server.address}"), Counter[int](), list[int]()

        @app.on(counted, concurrency=32)
        async def count(n: int) -> None:
            handled[n] += 1
            await asyncio.sleep(0.001)

        async def publish() -> None:
            for first in range(0, 100_000, 10):
                drafts = [counted(n, id=f"m{n}") for n in range(first, first + 10)]
                while True:
                    with suppress(TidingsError):
                        await app.publish_many(drafts)
                        break
                accepted.extend(range(first, first + 10))

        async with app:
            publishing = asyncio.create_task(publish())
            link: Any = app.bus().link  # type: ignore[attr-defined]
            for kills in range(1, KILLS + 1):
                enough = len(handled) + 300
                await until(lambda enough=enough: len(handled) >= enough, "messages are handled")  # type: ignore[misc]
                server.kill()
                await server.start()
                await until(lambda kills=kills: link.epoch > kills and link.up.is_set(), "back")  # type: ignore[misc]
            publishing.cancel()
            await asyncio.wait({publishing})
            await until(lambda: not set(accepted) - set(handled), "all that was accepted is handled")
        assert len(accepted) > 900
        assert sum(handled.values()) - len(handled) <= KILLS * (10 + 512), "no more than what was in hand comes twice"


@pytest.mark.slow
async def test_a_group_of_any_language_resumes(tmp_path: Path) -> None:
    """A client of the service Bus: it publishes with acknowledgements, and subscribes again when the stream is lost."""
    accepted, seen, ends = set[str](), Counter[str](), 0

    async def publish(channel: aio.Channel) -> None:
        method = channel.stream_stream(f"/{BUS}/PublishStream", pb.PublishRequest.SerializeToString, read_published)
        while True:
            with suppress(aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
                call = method(wait_for_ready=True)
                while True:
                    ids = [new_id() for _ in range(10)]
                    await call.write(pb.PublishRequest(messages=[pb.Message(topic="a.b", id=id) for id in ids]))
                    if (answer := await call.read()) is aio.EOF:
                        break
                    assert list(answer.ids) == ids
                    accepted.update(ids)

    async def consume(channel: aio.Channel) -> None:
        nonlocal ends
        request, response = pb.SubscribeRequest, pb.SubscribeResponse
        method = channel.stream_stream(f"/{BUS}/Subscribe", request.SerializeToString, response.FromString)
        while True:
            with suppress(aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
                call = method(wait_for_ready=True)
                await call.write(request(open=pb.Open(pattern="a.>", group="other.bill", start=0.0)))
                while (came := await call.read()) is not aio.EOF:
                    seen.update(each.message.id for each in came.messages)
                    await call.write(request(acknowledged=[each.number for each in came.messages]))
            ends += 1

    read_published = pb.PublishResponse.FromString
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]
    async with (
        asyncio.timeout(DEADLINE),
        killable(f"sqlite:///{tmp_path}/bus.db?lease=2s") as server,
        aio.insecure_channel(server.address, options) as channel,
    ):
        working = [asyncio.create_task(publish(channel)), asyncio.create_task(consume(channel))]
        for kills in range(1, KILLS + 1):
            enough = len(seen) + 200
            await until(lambda enough=enough: len(seen) >= enough, "messages come")  # type: ignore[misc]
            server.kill()
            await server.start()
            await until(lambda kills=kills: ends >= kills, "the stream was lost")  # type: ignore[misc]
        working[0].cancel()
        await until(lambda: not accepted - set(seen), "all that was accepted has come")
        working[1].cancel()
        await asyncio.wait(working)
    assert len(accepted) > 400


async def test_what_was_in_hand_is_fenced(tmp_path: Path) -> None:
    """And comes again to the same consumer, which subscribes by itself."""
    async with asyncio.timeout(DEADLINE), killable(f"sqlite:///{tmp_path}/bus.db") as server:
        events = Counter[str]()
        async with joined(server, events) as bus:
            consumer = await bus.subscribe(Subscription(app="x", pattern="numbers.>", group="x.count"))
            assert not await bus.publish([message(1), message(2)])
            first, second = await take(consumer, 2)
            await settle(consumer, [first])
            receiving = asyncio.ensure_future(consumer.receive(10))
            server.kill()
            await until(lambda: not second.session.alive, "the loss is noticed")
            assert events["lost"] == 1
            (failure,) = await consumer.settle([Settlement(second)])
            assert failure.kind == "fenced"
            assert not await consumer.mark(second)
            await server.start()
            (again,) = await receiving
            assert (again.message.id, again.suspect) == (second.message.id, True)
            assert events["connected"] == 2
            await settle(consumer, [again])


async def test_a_publish_without_an_answer_is_unknown(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE), killable(f"sqlite:///{tmp_path}/bus.db") as server, joined(server) as bus:
        server.signal(signal.SIGSTOP)
        publishing = asyncio.create_task(bus.publish([message(1), message(2)]))
        await until(lambda: not bus.link.waiting and bus.link.asked, "it is on its way")
        server.kill()
        assert [(f.index, f.kind) for f in await publishing] == [(0, "unknown"), (1, "unknown")]
        later = asyncio.create_task(bus.publish([message(3)]))
        await asyncio.sleep(0)
        assert not later.done()
        await server.start()
        assert not await later


async def test_publishing_waits_so_long(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE), killable("memory://") as server:
        bus = GRPC(host="127.0.0.1", port=server.port, publish_wait=0.2).transport()
        await bus.open(lambda event: None)
        server.kill()
        await until(lambda: not bus.link.up.is_set())
        with pytest.raises(BusUnavailable, match="was waited for"):
            await bus.publish([message(1)])
        consumers = asyncio.create_task(bus.subscribe(Subscription(app="x", pattern="a", group="x.a")))
        with pytest.raises(BusUnavailable, match="was waited for"):
            await consumers
        await bus.close()


async def test_stop_ends_receive_while_the_server_is_away(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE), killable("memory://") as server, joined(server) as bus:
        consumer = await bus.subscribe(Subscription(app="x", pattern="a", group="x.a"))
        receiving = asyncio.ensure_future(consumer.receive(1))
        server.kill()
        await until(lambda: not bus.link.up.is_set())
        consumer.stop()
        assert not await receiving
        await consumer.close()


async def test_a_frozen_member_is_dropped_and_fenced(tmp_path: Path) -> None:
    """A member that answers nothing, half-open or hung: what it held comes to another when its lease has passed."""
    code = """
import asyncio, sys
from tidings.transports.grpc import GRPC
from tidings.kernel.transport import Subscription
async def main():
    bus = GRPC.from_url(sys.argv[1]).transport()
    await bus.open(lambda event: None)
    consumer = await bus.subscribe(Subscription(app="x", pattern="numbers.>", group="x.count"))
    print("here", flush=True)
    print(len(await consumer.receive(10)), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    async with asyncio.timeout(DEADLINE), killable(f"sqlite:///{tmp_path}/bus.db?lease=1s") as server:
        command = [sys.executable, "-c", code, f"grpc://{server.address}"]
        other = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert other.stdout is not None
        try:
            assert await other.stdout.readline() == b"here\n"
            async with joined(server) as bus:
                assert not await bus.publish([message(1)])
                assert await other.stdout.readline() == b"1\n"
                other.send_signal(signal.SIGSTOP)
                consumer = await bus.subscribe(Subscription(app="x", pattern="numbers.>", group="x.count"))
                (delivery,) = await take(consumer, 1)
                assert delivery.suspect
                await settle(consumer, [delivery])
        finally:
            other.kill()
            await other.wait()
