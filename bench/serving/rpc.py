"""The scenario ``rpc``: streams of `tidings.v1` from and to a client, beside a bare grpcio server (``bare_rpc.py``).

Server and client are a process each, on a core each. The client sends requests that were serialized before, and checks
what comes by its ids; copies and shares are of a backlog, so that nothing waits for who publishes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from grpc import aio
from msgspec.structs import replace

from tidings.transports.grpc.wire import BUS, pb

from ..harness import Figure, Scenario, Subject
from ..measure import bus_folder
from ..payload import body
from ..peers._shared import accepted
from .processes import OURS, running
from .web import MEMORY, SQLITE, TOPIC, bus

BARE = "bare grpcio"
BATCH, ON_THE_WAY = 500, 16  # messages a request, requests without response
CREDIT, GROUP = 1000, "bench.rpc"
PATIENCE = 60.0  # seconds
LEAST = 30_000.0

Stub = Callable[[], aio.StreamStreamCall[Any, Any]]


def stub(channel: aio.Channel, name: str, response: Any, serialize: Any = None) -> Stub:
    """``serialize``: None for requests that are bytes."""
    found: Stub = channel.stream_stream(f"/{BUS}/{name}", serialize, response.FromString)
    return found


async def publish(channel: aio.Channel, messages: int, each: int = BATCH) -> float:
    """Messages a second, accepted."""
    drafts = [pb.Message(topic=TOPIC, body=body(number)) for number in range(each)]
    frame = pb.PublishRequest(messages=drafts).SerializeToString()
    call, room, ids = stub(channel, "PublishStream", pb.PublishResponse)(), asyncio.Semaphore(ON_THE_WAY), set[str]()

    async def write() -> None:
        for _ in range(messages // each):
            await room.acquire()
            await call.write(frame)
        await call.done_writing()

    began = time.perf_counter()
    writing = asyncio.create_task(write())
    async for response in call:
        if response.HasField("error"):
            raise RuntimeError(response.error.what)
        ids.update(response.ids)
        room.release()
    took = time.perf_counter() - began
    await writing
    accepted(len(ids), messages)
    return messages / took


async def warm(channel: aio.Channel, messages: int, each: int = BATCH) -> float:
    """After some that are not timed."""
    await publish(channel, each * ON_THE_WAY, each)
    return await publish(channel, messages, each)


async def copies(channel: aio.Channel, messages: int) -> float:
    """A live copy, from the first message on."""
    await publish(channel, messages)
    call = stub(channel, "Subscribe", pb.SubscribeResponse, pb.SubscribeRequest.SerializeToString)()
    began = time.perf_counter()
    await call.write(pb.SubscribeRequest(open=pb.Open(pattern=TOPIC, after="0")))
    ids = set[str]()
    async for response in responses(call):
        ids.update(each.message.id for each in response.messages)
        if response.gap:
            raise RuntimeError("something was missed")
        if len(ids) == messages:
            took = time.perf_counter() - began
            break
    call.cancel()
    return messages / took


async def shares(channel: aio.Channel, messages: int) -> float:
    """A group's only member, that acknowledges what it gets, all of a response together."""
    subscribe = stub(channel, "Subscribe", pb.SubscribeResponse, pb.SubscribeRequest.SerializeToString)
    opened = pb.SubscribeRequest(open=pb.Open(pattern=TOPIC, group=GROUP, credit=CREDIT))
    first = subscribe()
    await first.write(opened)
    await first.read()
    await first.done_writing()
    while await first.read() is not aio.EOF:
        pass
    await publish(channel, messages)
    call, ids = subscribe(), set[str]()
    began = time.perf_counter()
    await call.write(opened)
    async for response in responses(call):
        ids.update(each.message.id for each in response.messages)
        await call.write(pb.SubscribeRequest(acknowledged=[each.number for each in response.messages]))
        if len(ids) == messages:
            took = time.perf_counter() - began
            break
    call.cancel()
    return messages / took


async def responses(call: aio.StreamStreamCall[Any, Any]) -> AsyncIterator[Any]:
    """Those with messages; raises when it ends, or waits for too long."""
    while True:
        async with asyncio.timeout(PATIENCE):
            response = await call.read()
        if response is aio.EOF:
            raise RuntimeError(f"the stream ended: {await call.details()}")
        if response.messages:
            yield response


class Work(NamedTuple):
    """``messages``: of a full measurement; ``least``: a second."""

    does: Callable[[aio.Channel, int], Awaitable[float]]
    messages: int
    least: float | None


WORKS: dict[str, Work] = {
    "publish, 500 a request": Work(warm, 300_000, LEAST),
    "publish, one a request": Work(partial(warm, each=1), 8_000, None),
    "copies of a backlog": Work(copies, 80_000, LEAST),
    "a group's backlog, acknowledged": Work(shares, 80_000, LEAST),
}


def words(subject: str, folder: Path) -> tuple[str, ...]:
    """Of the command that serves it."""
    if subject == BARE:
        return ("-m", "bench.serving.bare_rpc")
    return (*OURS, "--url", "memory://" if subject == MEMORY else bus(folder))


def measured(subject: str, work: str, part: int = 1) -> Sequence[float]:
    """``part``: one of so many parts of the messages."""
    does, messages, _ = WORKS[work]

    async def run(address: str) -> float:
        async with aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
            return await does(channel, messages // part)

    with bus_folder() as folder, running(*words(subject, folder), folder=folder) as server:
        return (asyncio.run(run(server.grpc)),)


def subjects(part: int) -> Iterator[Subject]:
    for name, work in WORKS.items():
        rate = Figure("rate", "msg/s")
        for server in (BARE, MEMORY, SQLITE):
            judged = replace(rate, at_least=work.least, ratio_to=(f"{BARE}: {name}",)) if server != BARE else rate
            yield Subject(f"{server}: {name}", (judged,), partial(measured, server, name, part), series=name)


def notes() -> str:
    """Which grpcio, and how the cores were shared."""
    return f"grpcio {version('grpcio')}; server and client have one core each of {os.cpu_count()}"


def scenario(quick: bool) -> Scenario:
    return Scenario(tuple(subjects(20 if quick else 1)), rounds=3, notes=notes, patience=180.0)
