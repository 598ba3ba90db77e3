"""A live copy is handed out when it has been read, whatever else is published meanwhile."""

from __future__ import annotations

from tests.transports.consuming import take, until
from tests.transports.postgres.helpers import bus, message, raw

from tidings.kernel.transport import Subscription
from tidings.transports.postgres.consumers import LiveConsumer


async def test_other_topics_hold_nothing_back(place: str) -> None:
    """Nobody asks for it until the log has gone on, with nothing more of its topics."""
    async with bus(place) as transport:
        live = await transport.subscribe(Subscription(app="shop", pattern="orders.>"))
        assert isinstance(live, LiveConsumer)
        assert not await transport.publish([message(1)])
        await until(lambda: bool(live.buffer))
        assert not await transport.publish([message(2, "billing.sent")])
        (delivery,) = await take(live, 1)
        assert delivery.message.id == "m1"


async def test_a_topic_that_is_new_holds_nothing_back(place: str) -> None:
    """Another process names a topic, perhaps one of ours: what was read is read again, and not only with the next."""
    async with bus(place) as transport, raw(place) as con:
        live = await transport.subscribe(Subscription(app="shop", pattern="orders.>"))
        assert not await transport.publish([message(1)])
        assert [delivery.message.id for delivery in await take(live, 1)] == ["m1"]
        await con.execute("SELECT channels(ARRAY['billing.sent'], ARRAY[0]::smallint[])")
        assert not await transport.publish([message(2)])
        assert [delivery.message.id for delivery in await take(live, 1)] == ["m2"]
