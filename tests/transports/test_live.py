"""What handlers of live copies send is published, and what was not accepted is told."""

from __future__ import annotations

from pathlib import Path

from tests.transports.consuming import take
from tests.transports.sqlite.helpers import bus, group, message

from tidings.kernel.message import Message
from tidings.kernel.transport import Settlement, Subscription


async def test_outputs_of_a_live_copy(tmp_path: Path) -> None:
    async with bus(tmp_path) as b:
        live = await b.subscribe(Subscription(app="shop", pattern="orders.>"))
        out = await b.subscribe(group("billing.>", "shop.mail"))
        await b.publish([message(n) for n in range(3)])
        plain, refused, good = await take(live, 3)
        large = Message("billing.sent", body=bytes(b.capabilities.max_payload + 1), id="large")
        settlements = [
            Settlement(plain),
            Settlement(refused, outgoing=(large,)),
            Settlement(good, outgoing=(message(9, "billing.sent"),)),
        ]
        (failure,) = await live.settle(settlements)
        assert (failure.index, failure.kind) == (1, "rejected")
        (delivery,) = await take(out, 1)
        assert delivery.message.id == "m9"
