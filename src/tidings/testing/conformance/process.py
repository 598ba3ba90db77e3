"""A worker process of the suite: ``main('{"url": ...}')``.

``hold``: does at the SPI what its standard input says, one JSON command a line. ``work``: runs an app whose handler
tells what it begins and ends. Both tell on standard output, one JSON object a line, with the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import msgspec
from msgspec import Struct

from tidings import App, Backoff, Delivery, Message, Retry, Topic
from tidings.kernel.transport import Options, Subscription
from tidings.urls import options_for

from .mutants import MUTANTS, MutantOptions


class Spec(Struct, frozen=True, kw_only=True):
    """What a worker process shall be."""

    url: str
    role: str = "work"
    name: str = ""
    group: str = "shop.bill"
    topic: str = "orders.placed"
    ordered: bool = False
    sleep: float = 0.002  # seconds a handler takes
    attempts: int = 3
    concurrency: int = 8
    mutant: str = ""

    def options(self) -> Options:
        options = options_for(self.url)
        return MutantOptions(MUTANTS[self.mutant], options) if self.mutant else options


class Told(Struct, frozen=True, omit_defaults=True):
    """One line of output."""

    what: str
    id: str = ""
    key: str | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    suspect: bool = False
    yes: bool = False
    at: float = 0.0


class Command(Struct, frozen=True):
    """One line of input to ``hold``: take so many, or mark one."""

    take: int = 0
    mark: str = ""


class Body(Struct):
    """What the messages of these tests say their handler shall do."""

    n: int = 0
    die: bool = False
    fail: int = 0  # so many times


def tell(line: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(msgspec.structs.replace(line, at=time.monotonic())) + b"\n")
    sys.stdout.buffer.flush()


def line_of(what: str, delivery: Delivery) -> Told:
    m, d = delivery.message, delivery
    return Told(what, m.id, m.key, d.attempt, d.failures, d.crashes, d.suspect)


async def hold(spec: Spec) -> None:
    transport = spec.options().transport()
    await transport.open(lambda event: None)
    consumer = await transport.subscribe(Subscription(app="conformance", pattern=spec.topic, group=spec.group))
    held: dict[str, Delivery] = {}
    tell(Told("ready"))
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = msgspec.json.decode(line, type=Command)
        while len(held) < command.take:
            for delivery in await consumer.receive(command.take - len(held)):
                held[delivery.message.id] = delivery
                tell(line_of("took", delivery))
        if command.mark:
            tell(Told("marked", command.mark, yes=await consumer.mark(held[command.mark])))


async def work(spec: Spec) -> None:
    backoff = Backoff(attempts=spec.attempts, first=0.01, jitter=0)
    app = App(spec.group.partition(".")[0], spec.options(), backoff=backoff)

    @app.on(Topic(spec.topic, Body), group=spec.group, ordered=spec.ordered, concurrency=spec.concurrency)
    async def handler(message: Message[Body], delivery: Delivery) -> None:
        tell(line_of("begin", delivery))
        if message.data.die:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(spec.sleep)
        if delivery.failures < message.data.fail:
            tell(line_of("fail", delivery))
            raise Retry(1.05 if spec.ordered else None)
        tell(line_of("end", delivery))

    async with app:
        tell(Told("ready"))
        await asyncio.to_thread(sys.stdin.read)


def main(argument: str) -> None:
    spec: Any = msgspec.json.decode(argument, type=Spec)
    asyncio.run({"hold": hold, "work": work}[spec.role](spec))
