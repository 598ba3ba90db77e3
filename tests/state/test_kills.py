"""Handlers that keep records, killed at random: nothing is lost, and each message has its effect once."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.conformance.engines import engine_bus
from tests.patterns.killing import KINDS, ROUNDS, Killing, url_of
from tests.state.kept_worker import ACCOUNTS, Balance, Payment, Told, balances, paid, told
from tests.transports.consuming import until

from tidings import App, Message, Topic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EACH, TWICE = 30, 7  # payments of an account in a round; every so many is sent twice


def payments(number: int) -> list[Message[Payment]]:
    """Those of a round, with ids of their own."""
    made = []
    for n in range(number * EACH + 1, (number + 1) * EACH + 1):
        for account in range(ACCOUNTS):
            message = paid(Payment(f"a{account}", n), key=f"a{account}", id=f"a{account}-{n}")
            made += [message] * (2 if n % TWICE == 0 else 1)
    return made


def expected(rounds: int) -> dict[str, Balance]:
    count = rounds * EACH
    return {f"a{account}": Balance(count, count * (count + 1) // 2) for account in range(ACCOUNTS)}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_payment_counts_once(kind: str, tmp_path: Path) -> None:
    async with Killing("tests.state.kept_worker", url_of(kind, tmp_path)) as killing:
        app, bus = killing.app, killing.app.bus()

        async def feed(number: int) -> None:
            await app.publish_many(payments(number))

        async def look() -> dict[str, int]:
            kept: Any = bus
            return {r.key: balances.decode(r.value).payments for r in await kept.scan(balances.name)}

        seen = await killing.rounds(feed, killing.idle, look)
        kept: Any = bus
        assert {r.key: balances.decode(r.value) for r in await kept.scan(balances.name)} == expected(ROUNDS)
        outputs = [msgspec.json.decode(m.body, type=Told) for m in await killing.log(told.name)]
    assert all(a.get(k, 0) <= b.get(k, 0) for a, b in pairwise(seen) for k in a), "it went back"
    tens = Counter((t.account, t.payments) for t in outputs)
    assert tens == Counter((f"a{a}", n) for a in range(ACCOUNTS) for n in range(10, ROUNDS * EACH + 1, 10))


@pytest.mark.parametrize("broker", ["nats", "redis"])
async def test_each_payment_counts_once_beside_a_broker(broker: str, tmp_path: Path) -> None:
    """The broker repeats what was not acknowledged, and the store knows it. What is told may be told twice, with the
    same id."""
    url = engine_bus(broker).url
    assert url is not None
    bus, store = url(2.0), f"sqlite:///{tmp_path / 'state.db'}?lease=1s"
    arrived: list[Message[Told]] = []
    watch = App("watch", bus)

    @watch.on(Topic(told.name, Told), group="watch.told")
    async def receive(message: Message[Told]) -> None:
        arrived.append(message)

    async with watch, Killing("tests.state.kept_worker", store) as killing:
        killing.url = f"{bus}|{store}"

        async def feed(number: int) -> None:
            await watch.publish_many(payments(number))

        async def kept() -> dict[str, Balance]:
            looked: Any = killing.app.bus()
            return {r.key: balances.decode(r.value) for r in await looked.scan(balances.name)}

        async def done() -> bool:
            booked = sum(balance.payments for balance in (await kept()).values())
            return booked == fed * ACCOUNTS * EACH and await killing.idle()  # the relay's group is in the store

        fed = 0

        async def feed_counted(number: int) -> None:
            nonlocal fed
            fed += 1
            await feed(number)

        await killing.rounds(feed_counted, done, kept)
        assert await kept() == expected(ROUNDS)
        tens = {(f"a{a}", n) for a in range(ACCOUNTS) for n in range(10, ROUNDS * EACH + 1, 10)}
        await until(lambda: {(m.data.account, m.data.payments) for m in arrived} == tens)
        await asyncio.sleep(0)
    by_id = {message.id: (message.data.account, message.data.payments) for message in arrived}
    assert len(by_id) == len(tens), "one was told under two ids"
