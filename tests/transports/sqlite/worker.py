"""A process on the bus, for tests: ``python worker.py <path> <lease> <what>``; it tells what it does, line by line."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from tidings.kernel.transport import Delivery, Event, Settlement, Subscription
from tidings.transports.sqlite import SQLite


def say(*words: Any) -> None:
    print(*words, flush=True)


async def handle(consumer: Any, delivery: Delivery, what: str) -> None:
    if delivery.suspect and not await consumer.mark(delivery):
        return
    say("start", delivery.message.body.decode(), delivery.crashes)
    if what == "die" and delivery.message.body == b"13":
        os._exit(3)
    if what == "hold":
        return
    if failed := await consumer.settle([Settlement(delivery)]):
        say(failed[0].kind, delivery.message.body.decode(), delivery.session.alive)
    else:
        say("done", delivery.message.body.decode())


async def work(path: str, lease: str, what: str) -> None:
    transport = SQLite(path=path, lease=lease).transport()

    def told(event: Event) -> None:
        say("event", event.kind, event.count)

    await transport.open(told)
    ordered = what == "ordered"
    consumer: Any = await transport.subscribe(
        Subscription(app="shop", pattern="orders.>", group="shop.bill", start=0.0, ordered=ordered)
    )
    say("ready", os.getpid())
    held: list[Delivery] = []

    async def extend() -> None:
        while True:
            await consumer.extend(held)
            await asyncio.sleep(0.05)

    extending = asyncio.ensure_future(extend())
    while got := await consumer.receive(5):
        for delivery in got:
            if what == "freeze":  # the test stops this process, and continues it when its lease is over
                say("frozen", delivery.message.body.decode())
                await asyncio.to_thread(sys.stdin.readline)
            if what == "ordered":
                await asyncio.sleep(0.002)
            held.append(delivery)
            await handle(consumer, delivery, what)
            if what != "hold":
                held.remove(delivery)
    extending.cancel()


asyncio.run(work(*sys.argv[1:]))
