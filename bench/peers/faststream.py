"""FastStream without a broker: its ``TestNatsBroker`` hands what is published straight to the handler."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from pathlib import Path

from fast_depends.msgspec import MsgSpecSerializer
from faststream.nats import NatsBroker, TestNatsBroker

from ..payload import Order
from ._shared import Tally, orders

NAME = "FastStream (in process)"
DURABLE = (
    "nothing is durable, nor queued: publish encodes, routes, decodes and awaits the handler. It is what the framework "
    "costs with no broker under it, about a fifth of it the test broker's mocks, as there is no other way in process"
)

# No publish, concurrent, backlog and latency: without a broker there is nothing that keeps a message until later, and
# no other process.


def VERSION() -> str:
    return f"faststream {version('faststream')}, fast-depends {version('fast-depends')}"


def end_to_end(folder: Path, messages: int) -> float:
    return asyncio.run(_end_to_end(messages))


async def _end_to_end(messages: int) -> float:
    broker, tally = NatsBroker(serializer=MsgSpecSerializer()), Tally(messages)

    @broker.subscriber("orders")
    async def handle(order: Order) -> None:
        tally.see(order)

    whole = orders(messages)
    async with TestNatsBroker(broker, connect_only=False) as running:
        began = time.perf_counter()
        for order in whole:
            await running.publish(order, "orders")
        took = time.perf_counter() - began
    tally.check(left=0)
    return messages / took
