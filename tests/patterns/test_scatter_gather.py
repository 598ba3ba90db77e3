"""Scatter-gather: one outcome for each question – complete, or in time – whoever answers, fails or dies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.json import decode
from msgspec.structs import replace
from tests.patterns.killing import KINDS, Killing, url_of
from tests.patterns.scatter_worker import SUPPLIERS, Offer, Quote, Wanted, offers, quotes, suppliers, wanted
from tests.state.stores import STORES
from tests.state.stores import url_of as store_url
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Router, Service, State, Topic
from tidings.kernel.errors import Conflict, InvalidOption, Undecodable, UsageError
from tidings.patterns import answer, ask_all, scatter_gather
from tidings.patterns._completion import Completion
from tidings.patterns._scattering import Scattering, gatherer
from tidings.store import Unit

each_store = pytest.mark.parametrize("kind", STORES)
Answers = dict[str, int | None]


def best(found: list[Quote]) -> Offer:
    return Offer(found[0].item if found else -1, {quote.supplier: quote.price for quote in found})


def shop(kind: str, folder: Path) -> App:
    return App("shop", store_url(kind, folder), breaker=None, backoff=Backoff(attempts=2, first=0.01))


def listen(app: App) -> list[Message[Offer]]:
    came: list[Message[Offer]] = []

    @app.on(offers, concurrency=1, group="test.offers")
    async def heard(message: Message[Offer]) -> None:
        came.append(message)

    return came


def supply(app: App, **prices: int | None) -> None:
    """Suppliers that answer with a price, or do not."""
    for topic, name in zip(suppliers, SUPPLIERS, strict=True):

        async def quote(message: Message[Wanted], name: str = name) -> Message[Quote] | None:
            price = prices.get(name)
            return None if price is None else answer(message, quotes(Quote(name, message.data.item, price)))

        app.on(topic, group=f"suppliers.{name}")(quote)


def gather(app: App, **options: Any) -> None:
    scatter_gather(app, wanted, **{"recipients": suppliers, "replies": quotes, "to": offers, **options})(best)


async def tables(app: App) -> dict[str, int]:
    bus: Any = app.bus()
    return {t.name: t.records for t in await bus.tables() if t.name != "_leases"}


async def letters(app: App, count: int) -> list[tuple[str, str]]:
    """Groups and reasons of all dead letters, once there are so many."""
    bus: Any = app.bus()
    async with asyncio.timeout(20):
        while len(found := await bus.peek("_dead.>", limit=1000)) < count:  # noqa: ASYNC110  # a bus tells nobody
            await asyncio.sleep(0.01)
    return [(stored.message.header("tdggroup"), stored.message.header("tdgreason")) for stored in found]


@each_store
async def test_all_answer(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    supply(app, west=3, south=2, north=1)
    gather(app)
    async with app:
        await app.publish_many([wanted(Wanted(n), id=f"w{n}", key=f"k{n}") for n in range(20)])
        await until(lambda: len(came) == 20)
        assert await tables(app) == {}
        assert await letters(app, 0) == []
    found = {m.data.item: m for m in came}
    assert sorted(found) == list(range(20))
    assert [list(m.data.prices.items()) for m in came] == [[("north", 1), ("south", 2), ("west", 3)]] * 20
    one = found[7]
    assert (one.key, one.correlation_id, one.header("aggregate")) == ("k7", "w7", "complete")


@each_store
async def test_recipients_know_what_they_are_asked(kind: str, tmp_path: Path) -> None:
    app, asked = shop(kind, tmp_path), list[Message[Wanted]]()
    gather(app)

    @app.on(suppliers[1])
    async def ask(message: Message[Wanted]) -> None:
        asked.append(message)

    async with app:
        await app.publish(wanted, Wanted(1), id="w1", headers={"x": "1"}, key="k")
        await until(lambda: asked)
        assert await tables(app) == {"shop.best.open": 1}
    (message,) = asked
    assert message.headers == (
        ("x", "1"),
        *(("sequence-id", "w1"), ("sequence-number", "1"), ("sequence-size", "3"), ("return-address", "quotes")),
    )
    assert (message.key, message.correlation_id, message.data) == ("k", "w1", Wanted(1))


@each_store
@pytest.mark.parametrize(("north", "prices"), [(1, {"north": 1}), (None, {})])
async def test_whoever_has_answered_in_time(kind: str, north: Any, prices: Any, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    supply(app, north=north)
    gather(app, timeout="300ms")
    async with app:
        await app.publish(wanted, Wanted(7))
        await until(lambda: came)
        assert await tables(app) == {}
    assert [(m.data.prices, m.header("aggregate")) for m in came] == [(prices, "timeout")]


@each_store
@pytest.mark.parametrize("rule", [{"size": 2}, {"until": lambda found: len(found) == 2}])
@pytest.mark.parametrize("late", ["drop", "dead"])
async def test_enough_have_answered(kind: str, rule: Any, late: Any, tmp_path: Path) -> None:
    app, go = shop(kind, tmp_path), asyncio.Event()
    came = listen(app)
    gather(app, late=late, **rule)
    for topic, name in zip(suppliers, SUPPLIERS, strict=True):

        async def quote(message: Message[Wanted], name: str = name) -> Message[Quote]:
            if name == "west":
                await go.wait()
            return answer(message, quotes(Quote(name, message.data.item, 1)))

        app.on(topic, group=f"suppliers.{name}")(quote)
    async with app:
        await app.publish(wanted, Wanted(7))
        await until(lambda: came)
        go.set()
        await until(lambda: app.stats()["shop.best-gather"].handled == 3)
        late_ones = [("shop.best-gather", "late")] if late == "dead" else []
        assert await letters(app, len(late_ones)) == late_ones
        assert await tables(app) == {}
    assert [sorted(m.data.prices) for m in came] == [["north", "south"]]


@each_store
@pytest.mark.parametrize(("partial", "dead"), [("drop", []), ("dead", [("shop.best-gather", "timeout")])])
async def test_too_few_are_no_outcome(kind: str, partial: Any, dead: Any, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    supply(app, north=1)
    gather(app, partial=partial, timeout="300ms")
    async with app:
        await app.publish(wanted, Wanted(7))
        await until(lambda: app.stats()["shop.best-gather"].handled)
        async with asyncio.timeout(20):
            while await tables(app):  # noqa: ASYNC110  # a bus tells nobody
                await asyncio.sleep(0.01)
        assert await letters(app, len(dead)) == dead
    assert came == []


async def test_a_recipient_counts_once(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    came = listen(app)

    @app.on(suppliers[0])
    async def north(message: Message[Wanted]) -> list[Message[Quote]]:
        return [answer(message, quotes(Quote("north", 1, price))) for price in (1, 2, 3)]

    gather(app, timeout="500ms")
    async with app:
        await app.publish(wanted, Wanted(1))
        await until(lambda: came)
    assert [m.data.prices for m in came] == [{"north": 1}]


@each_store
async def test_recipients_by_question(kind: str, tmp_path: Path) -> None:
    app = shop(kind, tmp_path)
    came = listen(app)
    supply(app, north=1, south=2, west=3)
    gather(app, recipients=lambda asked: suppliers[: asked.item])
    async with app:
        await app.publish_many([wanted(Wanted(n)) for n in (0, 1, 3)])
        await until(lambda: len(came) == 3)
        assert await tables(app) == {}
    assert sorted(list(m.data.prices) for m in came) == [[], ["north"], ["north", "south", "west"]]


async def test_what_is_no_topic_is_a_dead_letter(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    gather(app, recipients=lambda asked: ["suppliers.north"])
    async with app:
        await app.publish(wanted, Wanted(1))
        await until(lambda: app.stats()["shop.best"].dead)
        assert await letters(app, 1) == [("shop.best", "wrong return type")]
        assert await tables(app) == {}


async def test_the_same_question_twice_has_one_outcome(tmp_path: Path) -> None:
    app = shop("sqlite", tmp_path)
    came = listen(app)
    supply(app, north=1, south=2, west=3)
    gather(app)
    async with app:
        app.pause("shop.best-gather")
        await app.publish_many([wanted(Wanted(1), id="w"), wanted(Wanted(1), id="w")])
        await until(lambda: app.stats()["shop.best"].handled == 2)
        app.pause("shop.best-gather", False)
        await until(lambda: app.stats()["shop.best-gather"].handled == 3)
        await until(lambda: came)
    assert len(came) == 1


@pytest.mark.parametrize("beside", ["nats", "redis"])
async def test_beside_a_bus_that_keeps_no_records(beside: str, tmp_path: Path) -> None:
    from tests.conformance.engines import engine_bus

    app = App("shop", engine_bus(beside).options(2.0), state=f"sqlite:///{tmp_path / 'state.db'}")
    came = listen(app)
    supply(app, north=1, south=2, west=3)
    gather(app)
    async with app:
        await app.publish_many([wanted(Wanted(n)) for n in range(5)])
        await until(lambda: len(came) == 5)
    assert [len(m.data.prices) for m in came] == [3] * 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipients": ["north"]}, "a recipient cannot be"),
        ({"recipients": suppliers[0]}, "recipients cannot be"),
        ({"replies": "quotes"}, "replies cannot be"),
        ({"to": Topic("offers.*", Offer)}, "to cannot be"),
        ({"timeout": 0}, "timeout cannot be 0"),
        ({"late": "new"}, "late cannot be 'new'"),
        ({"until": 3}, "until cannot be 3"),
        ({"timout": "3s"}, "did you mean 'timeout'"),
        ({"idle": "3s"}, "no option 'idle'"),
    ],
)
def test_refused_at_the_line(options: dict[str, Any], said: str) -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidOption, match=said):
        gather(app, **options)
    assert app.registrations == []


def test_a_router_has_no_name_to_keep_records_by() -> None:
    with pytest.raises(InvalidOption, match="needs a group="):
        gather(Router())  # type: ignore[arg-type]


def test_only_what_was_asked_is_answered() -> None:
    with pytest.raises(Undecodable, match="wants no answer"):
        answer(wanted(Wanted(1)), quotes(Quote("north", 1, 1)))


async def test_a_question_that_comes_again_fails_with_what_it_was_decided_by() -> None:
    """And so does an answer to a question of which nothing is known."""
    gathering = gatherer(best, "shop.best", quotes, offers, Completion(late="drop", timeout=9.0))
    scattering = Scattering(
        group="shop.best", ask=lambda m: [suppliers[0](Wanted(1))], replies=quotes, gathering=gathering
    )
    question: Any = replace(wanted(Wanted(1), id="w"), body=b'{"item":1}')
    async with App("shop", "memory://").connect() as app:
        store: Any = app.bus()
        pending: Any = {}
        first, second = State(store, pending), State(store, pending)
        (asked,) = await scattering.scatter(question, first)
        assert first.stage()
        assert await scattering.scatter(question, second) == []
        assert second.stage()
        (failure,) = await store.commit([Unit(second.writes)])  # the first never is
        assert isinstance(failure.error, Conflict)
        alone = State(store, {})
        reply: Any = replace(answer(asked, quotes(Quote("north", 1, 1))), id="q", body=b"{}")
        assert await gathering.collect([reply], alone) == []
        assert alone.stage()
        assert not await store.commit([Unit(first.writes)])
        (failure,) = await store.commit([Unit(alone.writes)])
        assert isinstance(failure.error, Conflict)


# -- the quick form

prices = [Service(f"price.{name}", Wanted, Quote) for name in SUPPLIERS]


async def test_ask_all_leaves_out_who_does_not_answer() -> None:
    app = App("shop", "memory://")

    @app.answer(prices[0])
    async def north(asked: Wanted) -> Quote:
        return Quote("north", asked.item, 1)

    @app.answer(prices[1])
    async def south(asked: Wanted) -> Quote:
        raise ValueError("as told")

    async with app:
        assert await ask_all(app, prices, Wanted(7)) == [Quote("north", 7, 1)]
        assert await ask_all(app, [], Wanted(7)) == []


async def test_ask_all_waits_for_so_long() -> None:
    app, over = App("shop", "memory://"), asyncio.Event()

    @app.answer(prices[1])
    async def south(asked: Wanted) -> Quote:
        await over.wait()
        return Quote("south", asked.item, 1)

    @app.answer(prices[2])
    async def west(asked: Wanted) -> Quote:
        return Quote("west", asked.item, 1)

    async with app:
        assert await ask_all(app, prices[::-1], Wanted(7), timeout="200ms") == [Quote("west", 7, 1)]
        with pytest.raises(UsageError):
            await ask_all(app, prices, Wanted(7), timeout="soon")
        over.set()


# -- kill -9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
async def test_killed_at_random_each_question_has_one_outcome(kind: str, tmp_path: Path) -> None:
    asked = 0
    async with Killing("tests.patterns.scatter_worker", url_of(kind, tmp_path)) as killing:
        bus: Any = killing.app.bus()

        async def feed(number: int) -> None:
            nonlocal asked
            some = range(asked, asked + 20)
            asked += 20
            await killing.app.publish_many([wanted(Wanted(n), id=f"w{n}", key=f"k{n}") for n in some])

        async def look() -> int:
            return sum(t.records for t in await bus.tables() if t.name == "shop.best.open")

        async def done() -> bool:
            return await killing.idle() and not await look()

        seen = await killing.rounds(feed, done, look, hit=True)
        assert any(seen), "nothing was open when it died"
        outcomes = [(m.key, m.header("aggregate"), decode(m.body, type=Offer)) for m in await killing.log("offers")]
        answers = [decode(m.body, type=Quote) for m in await killing.log("quotes")]
        assert await killing.log("_dead.>") == []
    assert sorted(str(key) for key, _, _ in outcomes) == sorted(f"k{n}" for n in range(asked))
    assert len(answers) == asked * 2 + asked // 2, "an answer is missing, or was given twice"
    for key, how, offer in outcomes:
        item = int(str(key)[1:])
        full = {name: 10 * item + len(name) for name in SUPPLIERS if name != "west" or item % 2 == 0}
        assert offer.prices.items() <= full.items()
        assert how == "timeout" or offer.prices == full
    assert any(how == "complete" for _, how, _ in outcomes)
