"""Dynamic routers: which rules hold, for whom, and that they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.kernel.rig import virtual
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Topic
from tidings.kernel.errors import InvalidHandler, InvalidOption
from tidings.patterns import Rule, dynamic_router
from tidings.testing import running


class Parcel(Struct):
    weight: int


class Offer(Struct):
    most: int


parcels = Topic("parcels", Parcel)
offers = Topic("offers", Rule[Offer])
by_hand = Topic("by-hand", Parcel)


def new_app(url: str = "memory://", **options: Any) -> App:
    app = App("post", url, backoff=Backoff(attempts=2, first=0.1))

    @dynamic_router(app, parcels, rules=offers, **options)
    def takes(parcel: Parcel, offer: Offer) -> bool:
        if parcel.weight < 0:
            raise ValueError("no weight")
        return parcel.weight <= offer.most

    assert takes(Parcel(1), Offer(1))
    return app


async def ways(app: App, captured: Any, *weights: int) -> list[str]:
    """Where parcels of these weights go, by weight."""
    before = len(await captured.messages("to.>"))
    await app.publish_many([parcels(Parcel(weight), key=str(weight)) for weight in weights])
    await captured.idle()
    found = sorted((await captured.messages("to.>"))[before:], key=lambda message: (int(message.key), message.topic))
    return [message.topic.removeprefix("to.") for message in found]


@virtual
async def test_recipients_come_and_go() -> None:
    app = new_app()
    async with running(app) as captured:
        await app.publish_many(
            [offers(Rule("lorry", "to.lorry", Offer(500))), offers(Rule("bike", "to.bike", Offer(5)))]
        )
        await captured.idle()
        assert await ways(app, captured, 1, 100) == ["bike", "lorry"]
        await app.publish(offers(Rule("bike", "to.bike", Offer(200))))
        await captured.idle()
        assert await ways(app, captured, 1, 100, 300) == ["bike", "bike", "lorry"]
        await app.publish(offers(Rule("bike")))
        await captured.idle()
        assert await ways(app, captured, 1, 100) == ["lorry", "lorry"]
        assert await captured.dead() == []


@virtual
async def test_the_first_by_rank_and_name_or_every_one() -> None:
    rules = [Rule("a", "to.a", Offer(100)), Rule("c", "to.c", Offer(10), rank=1), Rule("b", "to.b", Offer(100))]
    for every, expected in ((False, ["c", "a"]), (True, ["a", "b", "c", "a", "b"])):
        app = new_app(every=every)
        async with running(app) as captured:
            await app.publish_many([offers(rule) for rule in [*rules, Rule("twin", "to.a", Offer(100))]])
            await captured.idle()
            assert await ways(app, captured, 1, 50) == expected


@virtual
async def test_a_rule_without_a_condition_takes_all() -> None:
    app = new_app()
    async with running(app) as captured:
        await app.publish(offers(Rule("any", "to.any", rank=-1)))
        await app.publish(offers(Rule("bike", "to.bike", Offer(5))))
        await captured.idle()
        assert await ways(app, captured, 1, 100) == ["bike", "any"]


@virtual
async def test_what_nobody_wants() -> None:
    app, with_other = new_app(), new_app(otherwise=by_hand)
    async with running(app) as captured:
        await app.publish(offers(Rule("bike", "to.bike", Offer(5))))
        await captured.idle()
        assert await ways(app, captured, 1, 6, 2) == ["bike", "bike"]
        [letter] = await captured.dead("post.takes")
        assert (letter.key, letter.header("tdgdetail")) == ("6", "no rule matches, and there is no other way")
    async with running(with_other) as captured:
        await ways(with_other, captured, 6)
        assert await captured.payloads(by_hand) == [Parcel(6)]


@virtual
async def test_a_failing_function_fails_one_message() -> None:
    app = new_app()
    async with running(app) as captured:
        await app.publish(offers(Rule("any", "to.any", Offer(5))))
        await captured.idle()
        assert await ways(app, captured, 1, -2, 3, 4) == ["any"] * 3
        [letter] = await captured.dead("post.takes")
    assert (letter.key, letter.header("tdgerror")) == ("-2", "ValueError")
    assert "in takes" in letter.header("tdgtraceback")


@virtual
async def test_what_is_passed_on_is_what_came_and_has_the_same_id_when_it_is_done_again() -> None:
    app = new_app()
    async with running(app) as captured:
        await app.publish(offers(Rule("any", "to.any")))
        await captured.idle()
        body = b'{"weight": 1, "more": 2}'
        odd: Message[Any] = Message("parcels", body, id="m", key="k", type="parcels", headers=(("a", "b"),))
        await app.publish(odd)
        await app.publish(odd)
        await captured.idle()
        first, second = await captured.messages("to.any")
    assert (first.body, first.key, first.headers, first.causation_id) == (body, "k", (("a", "b"),), "m")
    assert first.id == second.id != "m"


@virtual
async def test_a_late_announcement_changes_nothing() -> None:
    app = new_app()
    async with running(app) as captured:
        for rule, time in ((Rule("x", "to.new"), 20.0), (Rule("x", "to.old"), 10.0), (Rule[Any]("y"), 20.0)):
            await app.publish(Message("offers", data=rule, type="offers", time=time))
            await captured.idle()
        await app.publish(Message("offers", data=Rule("y", "to.y", rank=1), type="offers", time=10.0))
        await captured.idle()
        assert await ways(app, captured, 1) == ["new"]


@virtual
async def test_a_rule_that_cannot_be_followed_is_a_dead_letter() -> None:
    app = new_app()
    wrong: list[Rule[Offer]] = [Rule("a", "_dead.x"), Rule("b", "to.*"), Rule("c", "no such topic"), Rule("", "to.d")]
    async with running(app) as captured:
        await app.publish_many([offers(rule) for rule in wrong])
        await app.publish(Topic("offers", dict[str, Any])({"name": "e", "topic": "to.e", "when": {"most": "much"}}))
        await captured.idle()
        letters = await captured.dead("post.takes-rules")
        assert len(letters) == 5
        assert await ways(app, captured, 1) == []


async def test_rules_are_kept_and_shared(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/post.db"
    async with new_app(url) as app:
        await app.publish(offers, Rule("any", "to.any"))
        bus: Any = app.bus()
        async with new_app(url) as other:
            await until(lambda: sum(a.stats()["post.takes-rules"].handled for a in (app, other)) == 1)
    async with new_app(url) as app:
        await app.publish_many([parcels(Parcel(n)) for n in range(1000)])
        bus = app.bus()
        await until(lambda: app.stats()["post.takes"].handled == 1000)
    async with App("post", url).connect() as app:
        bus = app.bus()
        assert len(await bus.peek("to.any", limit=2000)) == 1000


def test_what_cannot_be_is_refused() -> None:
    app = App("post", "memory://")
    plain: Any = Topic("offers", Offer)
    with pytest.raises(InvalidOption, match="rules cannot carry"):
        dynamic_router(app, parcels, rules=plain)
    with pytest.raises(InvalidOption, match="rules cannot be"):
        dynamic_router(app, parcels, rules=Topic("offers.{x}", Rule[Offer]))
    with pytest.raises(InvalidOption, match="otherwise cannot be"):
        dynamic_router(app, parcels, rules=offers, otherwise=Topic("ways.{x}", Parcel))

    async def slow(parcel: Parcel, offer: Offer) -> bool:
        return True

    register: Any = dynamic_router(app, parcels, rules=offers)
    with pytest.raises(InvalidHandler, match="cannot be async") as caught:
        register(slow)
    assert __file__ in caught.value.where
