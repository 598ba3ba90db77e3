"""A process that answers every message of ``orders.placed`` with one of ``billing.made``: ``settler.py URL [within]``.

It says ``ready`` once it is a member, ``settled`` or ``fenced`` for each message, and what is logged. A transaction may
last ``within`` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from tests.transports.kafka.helpers import member, message

from tidings.kernel.transport import Settlement
from tidings.transports.kafka import Kafka


async def main(url: str, within: float = 600.0) -> None:
    kafka = Kafka.from_url(url).transport()
    await kafka.open(lambda event: None)
    assert kafka.transactions is not None
    kafka.transactions.within = within
    consumer = await member(kafka)
    while not consumer.windows:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    while batch := await consumer.receive(100):
        outputs = [Settlement(d, outgoing=(message("billing.made", id=f"{d.message.id}.out"),)) for d in batch]
        failed = {failure.index: failure.kind for failure in await consumer.settle(outputs)}
        for index, delivery in enumerate(batch):
            print(failed.get(index, "settled"), delivery.message.id, flush=True)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="log %(message)s")
    asyncio.run(main(sys.argv[1], *map(float, sys.argv[2:])))
