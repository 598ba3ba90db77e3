"""Composed message processor: each part handled in its way, one whole for each message, whatever fails or dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.json import decode
from tests.patterns.composed_worker import (
    Bill,
    Line,
    Order,
    Priced,
    billed,
    bills,
    even,
    kind_of,
    odd,
    order,
    orders,
    price,
    priced,
)
from tests.patterns.killing import KINDS, Killing, url_of
from tests.state.stores import STORES
from tests.state.stores import url_of as store_url
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Reject, Router, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import answer, composed_message_processor

each_store = pytest.mark.parametrize("kind", STORES)


def shop(kind: str, folder: Path) -> App:
    return App("shop", store_url(kind, folder), breaker=None, backoff=Backoff(attempts=2, first=0.01))


def compose(app: App | Router, **options: Any) -> None:
    given: dict[str, Any] = {"split": lambda o: o.lines, "parts": kind_of, "results": priced, "to": bills, **options}
    composed_message_processor(app, orders, **given)(billed)


def listen(app: App, topic: Topic[Any] = bills) -> list[Message[Any]]:
    came: list[Message[Any]] = []

    async def heard(message: Message[Any]) -> None:
        came.append(message)

    app.on(topic, concurrency=1, group=f"test.{topic.name}")(heard)
    return came


async def tables(app: App) -> dict[str, int]:
    bus: Any = app.bus()
    return {t.name: t.records for t in await bus.tables() if t.name != "_leases"}


@each_store
async def test_parts_of_two_kinds_become_one(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came, lines = listen(app), listen(app, odd)
    price(app)
    compose(app)
    async with app:
        sent = [orders(order(f"o{n}", n), id=f"m{n}", key=f"k{n}") for n in range(12)]
        await app.publish_many(sent)
        await until(lambda: len(came) == 12)
        assert await tables(app) == {}
    whole = {str(m.key): m for m in came}
    for n in range(12):
        assert whole[f"k{n}"].data == Bill(f"o{n}" if n else "", list(range(n)), (["even", "odd"] * 6)[:n])
        assert whole[f"k{n}"].header("aggregate") == "complete"
        assert whole[f"k{n}"].correlation_id == f"m{n}"
    assert {(m.key, m.header("sequence-size"), m.header("return-address")) for m in lines if m.data.order == "o5"} == {
        ("k5", "5", "priced")
    }


@each_store
async def test_parts_of_one_kind(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    price(app)
    compose(app, parts=even)
    async with app:
        await app.publish(orders, order("o", 3))
        await until(lambda: came)
    assert came[0].data == Bill("o", [0, 1, 2], ["even"] * 3)


@each_store
async def test_a_part_that_fails_and_is_replayed_completes_it(kind: str, tmp_path: Path) -> None:
    app, mended = shop(kind, tmp_path), False
    came = listen(app)
    compose(app, parts=even)

    @app.on(even)
    async def check(message: Message[Line]) -> Message[Priced]:
        if message.data.n == 1 and not mended:
            raise Reject("as told")
        return answer(message, priced(Priced(message.data.order, message.data.n, "")))

    async with app:
        await app.publish(orders, order("o", 3))
        await until(lambda: app.stats()["shop.check"].dead == 1)
        await until(lambda: app.stats()["shop.billed-gather"].handled == 2)
        assert (came, await tables(app)) == ([], {"shop.billed.open": 1})
        mended = True
        bus: Any = app.bus()
        (letter,) = await bus.peek("_dead.shop.check")
        from msgspec.structs import replace

        again = [pair for pair in letter.message.headers if not pair[0].startswith("tdg")]
        await bus.publish([replace(letter.message, address="_group.shop.check", headers=tuple(again))])
        await until(lambda: came)
    assert came[0].data.lines == [0, 1, 2]


@each_store
async def test_what_has_come_in_time(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    compose(app, timeout="400ms")

    @app.on(even)
    async def check(message: Message[Line]) -> Message[Priced]:
        return answer(message, priced(Priced(message.data.order, message.data.n, "even")))

    async with app:
        await app.publish(orders, order("o", 4))
        await until(lambda: came)
        assert await tables(app) == {}
    assert (came[0].data.lines, came[0].header("aggregate")) == ([0, 2], "timeout")


async def test_a_topic_that_is_none_is_a_dead_letter(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    compose(app, parts=lambda line: "lines.odd")
    async with app:
        await app.publish(orders, order("o", 1))
        await until(lambda: app.stats()["shop.billed"].dead == 1)
        assert await tables(app) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "lines"}, "split cannot be"),
        ({"parts": "lines"}, "parts cannot be"),
        ({"parts": Topic("lines.*", Line)}, "parts cannot be"),
        ({"results": "priced"}, "results cannot be"),
        ({"to": "bills"}, "to cannot be"),
        ({"late": "new"}, "late cannot be 'new'"),
        ({"size": 3}, "no option 'size'"),
        ({"timout": "3s"}, "did you mean 'timeout'"),
    ],
)
def test_refused_at_the_line(options: dict[str, Any], said: str) -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match=said):
        compose(app, **options)
    assert app.registrations == []


def test_a_router_has_no_name_to_keep_records_by() -> None:
    with pytest.raises(InvalidOption, match="needs a group="):
        compose(Router())


# -- kill -9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_random_each_message_has_one_whole(kind: str, tmp_path: Path) -> None:
    sent = dict[str, Order]()
    async with Killing("tests.patterns.composed_worker", url_of(kind, tmp_path)) as killing:
        bus: Any = killing.app.bus()

        async def feed(number: int) -> None:
            some = {f"o{number}-{n}": order(f"o{number}-{n}", 1 + n % 7) for n in range(12)}
            sent.update(some)
            await killing.app.publish_many([orders(one, id=id, key=id) for id, one in some.items()])

        async def look() -> int:
            return sum(t.records for t in await bus.tables() if t.name == "shop.billed.open")

        async def done() -> bool:
            return await killing.idle() and not await look()

        seen = await killing.rounds(feed, done, look, hit=True)
        assert any(seen), "nothing was open when it died"
        whole = [decode(m.body, type=Bill) for m in await killing.log("bills")]
        results = await killing.log("priced")
        assert await killing.log("_dead.>") == []
    assert sorted(bill.order for bill in whole) == sorted(sent)
    assert {bill.order: bill.lines for bill in whole} == {id: list(range(len(o.lines))) for id, o in sent.items()}
    assert len(results) == sum(len(o.lines) for o in sent.values())
