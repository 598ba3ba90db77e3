"""What all protocols of a gateway share: publishing, asking, following, groups in a client's hands."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from tests.state.stores import url_of

from tidings import App, Backoff, Defer, Message, Reject, Retry, Service, Topic
from tidings.gateway import Gateway, Limits, Principal, Rights
from tidings.gateway.feeds import PAGE, Feeds, Follower
from tidings.gateway.refusals import Forbidden, Limited, Malformed
from tidings.gateway.rights import ANYONE
from tidings.kernel.errors import BusError, BusUnavailable, InvalidName, NoAnswerer, NotOpen, RequestTimeout, TooLarge
from tidings.kernel.transport import Consumer, Stored, Subscription
from tidings.transports.memory import Memory

KINDS = ["memory", "sqlite"]
DEADLINE = 20.0
ANYONE_AND_DEAD = Principal("operator", Rights(subscribe=(">", "_dead.>")))


def drafts(topic: str, count: int, begin: int = 0) -> list[Message[Any]]:
    return [Message(topic, b"%d" % n) for n in range(begin, begin + count)]


def bodies(items: Any) -> list[int]:
    return [int(item.message.body) for item in items]


@asynccontextmanager
async def opened(kind: str, folder: Path, **limits: Any) -> AsyncIterator[Gateway]:
    app = App("gate", url_of(kind, folder), backoff=Backoff(attempts=3, first=0.01))
    async with asyncio.timeout(DEADLINE), Gateway(app, Limits(**limits)) as gateway:
        yield gateway


async def take(source: Any, count: int) -> list[Any]:
    """So many items, in however many pieces they come."""
    items = list[Any]()
    while len(items) < count:
        items += await source.next()
    return items


@pytest.mark.parametrize("kind", KINDS)
async def test_followers_see_what_is_published_from_then_on(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as gateway:
        await gateway.publish(ANYONE, drafts("a.b", 2))
        one, other = await gateway.follow(ANYONE, "a.>"), await gateway.follow(ANYONE, "a.>")
        elsewhere = await gateway.follow(ANYONE, "c.>")
        sealed = await gateway.publish(ANYONE, [*drafts("a.b", 3, 2), *drafts("c.d", 1)])
        assert bodies(await take(one, 3)) == bodies(await take(other, 3)) == [2, 3, 4]
        (item,) = await take(elsewhere, 1)
        assert item.message == sealed[-1]
        assert item.message.type == "c.d"
        assert item.message.source == "gate"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_follower_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    """Within the window, before it, and far before it."""
    async with opened(kind, tmp_path, window=10) as gateway:
        first = await gateway.follow(ANYONE, "a.*")
        await gateway.publish(ANYONE, [m for n in range(2 * PAGE) for m in (*drafts("a.b", 1, n), *drafts("z", 1, n))])
        seen = await take(first, 2 * PAGE)
        assert bodies(seen) == list(range(2 * PAGE))
        assert first.gap == 0
        for missed in (3, 15, 2 * PAGE - 1):
            again = await gateway.follow(ANYONE, "a.*", after=seen[-missed - 1].cursor)
            assert bodies(await take(again, missed)) == bodies(seen[-missed:])
            await gateway.publish(ANYONE, drafts("a.c", 1, missed))
            assert bodies(await take(again, 1)) == [missed]
            seen += await take(first, 1)


async def test_a_follower_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as gateway:
        follower = await gateway.follow(ANYONE, "a.>")
        await gateway.publish(ANYONE, drafts("a.b", 1))
        ((item),) = await take(follower, 1)
    async with opened("sqlite", tmp_path) as gateway:
        await gateway.publish(ANYONE, drafts("a.b", 2, 1))
        again = await gateway.follow(ANYONE, "a.>", after=item.cursor)
        assert bodies(await take(again, 2)) == [1, 2]
        again.close()


async def test_a_follower_is_told_of_what_the_log_dropped_meanwhile() -> None:
    """Of any topic, as nobody knows what it was; not while the window has it, nor to whoever asks for all there is."""
    url = "memory://dropped?messages=5"
    async with asyncio.timeout(DEADLINE), Gateway(App("gate", url)) as gateway:
        first = await gateway.follow(ANYONE, "a")
        await gateway.publish(ANYONE, drafts("a", 5))
        seen = await take(first, 5)
        await gateway.publish(ANYONE, drafts("z", 4))
        again = await gateway.follow(ANYONE, "a", after=seen[0].cursor)
        assert bodies(await take(again, 4)) == [1, 2, 3, 4]
        assert again.gap == 0
        async with Gateway(App("other", url)) as other:
            gaps = [(await other.follow(ANYONE, "a", after=cursor)).gap for cursor in ("0", "1", "3", "4", "5")]
            assert gaps == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
async def test_who_reads_slowly_misses_nothing_and_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, window=5) as gateway:
        slow, quick = await gateway.follow(ANYONE, ">"), await gateway.follow(ANYONE, ">")
        for n in range(0, 60, 3):
            await gateway.publish(ANYONE, drafts("a", 3, n))
            assert bodies(await take(quick, 3)) == [n, n + 1, n + 2]
        assert bodies(await take(slow, 60)) == list(range(60))
        assert slow.gap == 0
        assert len(slow.feed.items) <= 5


async def test_what_is_delayed_is_seen_when_it_is_due(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as gateway:
        follower = await gateway.follow(ANYONE, "a")
        await gateway.publish(ANYONE, [Message("a", b"1", delay=0.3)])
        await gateway.publish(ANYONE, [Message("a", b"2")])
        assert bodies(await take(follower, 2)) == [2, 1]


async def test_a_cursor_that_is_none_is_refused(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        for cursor in ("", "x", "-1", "1.5", "٣", "9" * 30):
            with pytest.raises(Malformed, match="no cursor"):
                await gateway.follow(ANYONE, ">", after=cursor)


async def test_followers_end_with_the_gateway(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        waiting = asyncio.create_task((await gateway.follow(ANYONE, ">")).next())
        await asyncio.sleep(0)
    assert await waiting == ()
    with pytest.raises(NotOpen):
        await gateway.follow(ANYONE, ">")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_group_gets_each_until_it_is_acknowledged(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as gateway:
        await gateway.publish(ANYONE, drafts("a", 3))
        claim = await gateway.claim(ANYONE, "a", "web.tab", start=0)
        first = await take(claim, 3)
        assert bodies(first) == [0, 1, 2]
        assert claim.acknowledge(first[0].number)
        assert not claim.acknowledge(first[0].number)
        assert not claim.acknowledge(99)
        await claim.close()
        again = await gateway.claim(ANYONE, "a", "web.tab")
        second = await take(again, 2)
        assert sorted(bodies(second)) == [1, 2]
        assert [claimed.attempt for claimed in second] == [1, 1]
        await again.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_client_fails_is_tried_again_then_dead(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as gateway:
        claim = await gateway.claim(ANYONE, "a", "web.tab")
        dead = await gateway.follow(ANYONE_AND_DEAD, "_dead.>")
        await gateway.publish(ANYONE, drafts("a", 2))
        for attempt in (1, 2, 3):
            claimed = await take(claim, 2 if attempt == 1 else 1)
            assert {each.attempt for each in claimed} == {attempt}
            for each in claimed:
                claim.fail(each.number, Reject("never") if int(each.message.body) else ValueError("not now"))
        letters = await take(dead, 2)
        assert [(int(i.message.body), i.message.header("tdgreason")) for i in letters] == [
            (1, "rejected"),
            (0, "failed"),
        ]
        await claim.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_failures_are_remembered_when_a_client_leaves(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as gateway:
        claim = await gateway.claim(ANYONE, "a", "web.tab")
        await gateway.publish(ANYONE, drafts("a", 1))
        (first,) = await take(claim, 1)
        claim.fail(first.number, Retry(0))
        (second,) = await take(claim, 1)
        assert second.attempt == 2
        await claim.close()  # with it in hand: that is no failure, and no pardon
        again = await gateway.claim(ANYONE, "a", "web.tab")
        (third,) = await take(again, 1)
        assert third.attempt == 2
        again.fail(third.number, Defer(0))
        (fourth,) = await take(again, 1)
        again.acknowledge(fourth.number)
        await again.close()


async def test_credit_bounds_what_is_in_hand(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path, unacknowledged=5) as gateway:
        claim = await gateway.claim(ANYONE, "a", "web.tab", credit=2)
        await gateway.publish(ANYONE, drafts("a", 20))
        first = await take(claim, 2)
        assert len(claim.pending) == 2
        claim.grant(1_000)
        assert len(await take(claim, 3)) == 3  # 5 at most, whatever is asked for
        assert len(claim.pending) == 5
        claim.grant(0)
        for each in first:
            claim.acknowledge(each.number)
        claim.grant(5)
        assert len(await take(claim, 2)) == 2
        await claim.close()


async def test_order_by_key(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as gateway:
        claim = await gateway.claim(ANYONE, "a", "web.tab")
        await gateway.publish(ANYONE, [Message("a", b"%d" % n, key="k" if n < 3 else "other") for n in range(6)])
        first = await take(claim, 2)
        assert bodies(first) == [0, 3]
        claim.acknowledge(first[0].number)
        assert bodies(await take(claim, 1)) == [1]
        await claim.close()


async def test_what_a_client_keeps_for_too_long_is_tried_again(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        claim = await gateway.claim(ANYONE, "a", "web.tab", acknowledge=0.0)  # a second at least
        await gateway.publish(ANYONE, drafts("a", 1))
        (first,) = await take(claim, 1)
        (second,) = await take(claim, 1)
        assert (first.attempt, second.attempt) == (1, 2)
        assert not claim.acknowledge(first.number)
        assert claim.acknowledge(second.number)
        await claim.close()


prices = Service("prices.quote", dict[str, int], dict[str, int])


async def test_requests_are_passed_on_as_they_are(tmp_path: Path) -> None:
    app = App("shop", url_of("memory", tmp_path))

    @app.answer(prices)
    async def quote(asked: dict[str, int]) -> AsyncIterator[dict[str, int]]:
        for n in range(asked["count"]):
            yield {"n": n}

    async with asyncio.timeout(DEADLINE), app, Gateway(app) as gateway:
        asked = json.dumps({"count": 2}).encode()
        replies = [reply async for reply in gateway.request(ANYONE, "prices.quote", asked, "application/json")]
        assert [(json.loads(r.body), r.content_type) for r in replies] == [
            ({"n": n}, "application/json") for n in (0, 1)
        ]
        with pytest.raises(NoAnswerer):
            await anext(gateway.request(ANYONE, "prices.guess", b"{}", "application/json"))


async def test_rights_hold(tmp_path: Path) -> None:
    who = Principal("till", Rights(publish=("orders.>",), subscribe=("orders.>",), group=("till.>",)))
    async with opened("memory", tmp_path) as gateway:
        await gateway.publish(who, drafts("orders.placed", 1))
        await (await gateway.claim(who, "orders.>", "till.one")).close()
        (await gateway.follow(who, "orders.placed")).close()
        with pytest.raises(Forbidden, match="publish 'stock'"):
            await gateway.publish(who, [*drafts("orders.placed", 1), *drafts("stock", 1)])
        for pattern in (">", "stock", "_dead.till.one"):
            with pytest.raises(Forbidden, match="subscribe"):
                await gateway.follow(who, pattern)
        with pytest.raises(Forbidden, match=r"group 'shop\.bill'"):
            await gateway.claim(who, "orders.>", "shop.bill")
        with pytest.raises(Forbidden, match="request"):
            await anext(gateway.request(who, "prices.quote", b"{}", "application/json"))


async def test_what_belongs_to_tidings_stays_there(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        for topic in ("_dead.shop.bill", "_group.shop.bill", "_tidings.control.shop", "a.*", ""):
            with pytest.raises(InvalidName):
                await gateway.publish(ANYONE, drafts(topic, 1))
        for pattern in ("_group.>", "_tidings.>", "_reply.>"):
            with pytest.raises(InvalidName):
                await gateway.follow(ANYONE, pattern)
        with pytest.raises(InvalidName):
            await gateway.claim(ANYONE, "a", "_mine")
        with pytest.raises(Malformed):
            await gateway.publish(ANYONE, [Message("a", address="_group.shop.bill")])
        with pytest.raises(Malformed):
            await gateway.follow(ANYONE, "a.{b}")


async def test_limits_hold_before_anything_is_published(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, messages=10, batch=100, body=50, rate=20.0) as gateway:
        follower = await gateway.follow(ANYONE, "a")
        with pytest.raises(TooLarge, match="11 messages at once"):
            await gateway.publish(ANYONE, drafts("a", 11))
        with pytest.raises(TooLarge, match="120 bytes at once"):
            await gateway.publish(ANYONE, [Message("a", b"x" * 40)] * 3)
        with pytest.raises(TooLarge):
            await gateway.publish(ANYONE, [Message("a", b"x" * 60)])
        for n in range(4):
            await gateway.publish(ANYONE, drafts("a", 10, 10 * n))
        with pytest.raises(Limited, match="more than 20 messages a second"):
            await gateway.publish(ANYONE, drafts("a", 10))
        assert bodies(await take(follower, 40)) == list(range(40))


async def test_an_app_that_is_open_stays_open(tmp_path: Path) -> None:
    app, seen = App("shop", "memory://"), asyncio.Event()

    @app.on(Topic("a", int))
    async def handle(n: int) -> None:
        seen.set()

    async with asyncio.timeout(DEADLINE), app:
        async with Gateway(app) as gateway:
            await gateway.publish(ANYONE, drafts("a", 1))
            await seen.wait()
            with pytest.raises(NotOpen, match="already open"):
                await gateway.open()
        await app.publish(Topic("a", int), 2)


async def test_claims_end_with_the_gateway(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as gateway:
        await gateway.publish(ANYONE, drafts("a", 1))
        claim = await gateway.claim(ANYONE, "a", "web.tab", start=0)
        await take(claim, 1)
    assert await claim.next() == ()
    async with opened("sqlite", tmp_path) as gateway:
        assert len(await take(await gateway.claim(ANYONE, "a", "web.tab"), 1)) == 1  # at once: it was given back


@pytest.mark.parametrize(
    "said",
    [
        {"key": "k\r\nNats-Rollup: all"},
        {"id": "a\nb"},
        {"type": "t\x00"},
        {"content_type": "text/plain\r\nce-tdgtopic: bank"},
        {"correlation_id": "\x7f"},
        {"headers": (("ce_tdgtopic", "bank"),)},
        {"headers": (("fine", ""), ("CE-tdgtopic", "bank"))},
        {"headers": (("cloudEvents:tdgtopic", "bank"),)},
        {"headers": (("tdgreply", "value"),)},
        {"headers": (("Nats-Rollup", "all"),)},
        {"headers": (("a\r\nb", ""),)},
        {"time": -1e11},
        {"deliver_at": 1e12},
        {"expires_at": float("nan")},
    ],
    ids=repr,
)
async def test_what_a_bus_might_read_as_something_else_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        with pytest.raises(Malformed):
            await gateway.publish(ANYONE, [Message("a", b"1"), Message("a", b"2", **said)])
        assert await gateway.bus.transport.peek(">") == []  # type: ignore[attr-defined]


async def test_what_only_looks_strange_is_published(tmp_path: Path) -> None:
    async with opened("memory", tmp_path) as gateway:
        headers = (("x-céline", "line\r\nof text"), ("cents", "7"))
        draft = Message[Any]("a", b"1", key="\N{NO-BREAK SPACE}\N{SNOWMAN}", time=-1.0, headers=headers)
        (sealed,) = await gateway.publish(ANYONE, [draft])
        assert (sealed.key, sealed.headers, sealed.time) == (draft.key, headers, -1.0)


@pytest.mark.parametrize("served", [True, False], ids=["its-own-app", "another-app"])
async def test_an_app_s_group_is_joined_as_it_is(served: bool, tmp_path: Path) -> None:
    """Whoever joined last would say what the group reads: the app would get nothing of the rest."""
    shop, seen = App("shop", url_of("sqlite", tmp_path)), asyncio.Queue[int]()

    @shop.on(Topic("orders.>", int))
    async def bill(n: int) -> None:
        seen.put_nowait(n)

    serving = Gateway(shop if served else App("gate", url_of("sqlite", tmp_path)))
    async with asyncio.timeout(DEADLINE), shop, serving as gateway:
        for pattern in ("orders.placed", ">", "stock"):
            with pytest.raises(Forbidden, match=r"'shop\.bill' does not read"):
                await gateway.claim(ANYONE, pattern, "shop.bill")
        await (await gateway.claim(ANYONE, "orders.>", "shop.bill", credit=0)).close()
        await shop.publish(Topic("orders.paid", int), 7)
        assert await seen.get() == 7


async def test_a_client_may_change_what_its_own_group_reads(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as gateway:
        await (await gateway.claim(ANYONE, "a", "web.tab")).close()
        claim = await gateway.claim(ANYONE, "b", "web.tab")
        await gateway.publish(ANYONE, [*drafts("a", 1), *drafts("b", 1, 5)])
        assert bodies(await take(claim, 1)) == [5]


async def test_all_clients_together_have_only_so_much_in_hand(tmp_path: Path) -> None:
    async with opened("memory", tmp_path, in_hand=10) as gateway:
        first = await gateway.claim(ANYONE, "a", "a.b", credit=4)
        second = await gateway.claim(ANYONE, "a", "a.c", credit=4)
        second.grant(100)
        assert (first.credit, second.credit) == (4, 6)
        with pytest.raises(Limited, match="in hand"):
            await gateway.claim(ANYONE, "a", "a.d", credit=1)
        with pytest.raises(Limited, match="in hand"):
            first.grant(5)
        first.grant(2)
        third = await gateway.claim(ANYONE, "a", "a.d", credit=5)
        assert third.credit == 2
        await second.close()
        first.grant(100)
        assert first.credit == 8
        await first.close()
        await third.close()
        await third.close()
        assert gateway._hands.left == 10


async def test_a_request_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    app = App("shop", "memory://")

    @app.answer(prices)
    async def quote(asked: dict[str, int]) -> dict[str, int]:
        await asyncio.Event().wait()
        return {}

    app.grace = 0.0
    async with asyncio.timeout(DEADLINE), app, Gateway(app, Limits(deadline=0.1)) as gateway:
        with pytest.raises(RequestTimeout, match=r"within 0\.1 s"):
            await anext(gateway.request(ANYONE, "prices.quote", b"{}", "application/json", timeout="1h"))


async def test_a_past_that_is_gone_is_a_gap(tmp_path: Path) -> None:
    """Also when nothing at all is left, and when the log is another one than the cursor's."""
    async with opened("memory", tmp_path) as gateway:
        await gateway.publish(ANYONE, drafts("a", 10))
        cast(Any, gateway.bus.transport).store.log.clear()  # as retention does
        follower = await gateway.follow(ANYONE, "a", after="3")
        assert follower.gap == 1
        assert (await gateway.follow(ANYONE, "a", after="10")).gap == 0
        stranger = await gateway.follow(ANYONE, "a", after="1000")
        assert (stranger.gap, stranger.cursor) == (1, "10")


class Late:
    """A memory bus whose log lags behind what comes live, as a replica's does; or that does not answer at all."""

    def __init__(self) -> None:
        self.inner, self.shown, self.away, self.failing = Memory().transport(), 0, False, 0
        self.capabilities, self.client = self.inner.capabilities, None
        self.open, self.close, self.publish = self.inner.open, self.inner.close, self.inner.publish
        self.topics, self.groups = self.inner.topics, self.inner.groups

    async def subscribe(self, subscription: Subscription) -> Consumer:
        if self.away:
            await asyncio.Event().wait()
        return await self.inner.subscribe(subscription)

    async def position(self) -> int:
        return self.shown

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[Stored]:
        if self.failing:
            self.failing -= 1
            raise BusError("not now")
        return [s for s in await self.inner.peek(pattern, after, limit) if s.position <= self.shown]


def unlooked(follower: Follower) -> Follower:
    """A follower whose feed does not look at the log by itself now and then."""
    assert follower.feed.looking is not None
    follower.feed.looking.cancel()
    return follower


async def test_what_the_log_shows_late_is_not_waited_for_until_something_else_comes() -> None:
    bus = Late()
    await bus.open(lambda event: None)
    feeds = Feeds(cast(Any, bus), "gate", Limits(accept=0.2), Counter())
    async with asyncio.timeout(DEADLINE):
        follower = unlooked(await feeds.follow("a"))
        await bus.publish([Message("a", b"%d" % n, id=str(n)) for n in range(2)])
        bus.shown = 1
        assert bodies(await take(follower, 1)) == [0]
        bus.shown = 2
        assert bodies(await take(follower, 1)) == [1]
    await feeds.close()


async def test_what_could_not_be_read_is_looked_for_again() -> None:
    bus = Late()
    await bus.open(lambda event: None)
    feeds = Feeds(cast(Any, bus), "gate", Limits(), Counter())
    async with asyncio.timeout(DEADLINE):
        follower = unlooked(await feeds.follow("a"))
        bus.failing, bus.shown = 1, 1
        await bus.publish([Message("a", b"0", id="0")])
        assert bodies(await take(follower, 1)) == [0]
        assert not bus.failing
    await feeds.close()


async def test_a_bus_that_is_away_keeps_nobody_from_what_is_followed_already() -> None:
    bus = Late()
    await bus.open(lambda event: None)
    feeds = Feeds(cast(Any, bus), "gate", Limits(accept=0.2), Counter())
    async with asyncio.timeout(DEADLINE):
        await feeds.follow("a")
        bus.away = True
        waiting = asyncio.create_task(feeds.follow("b"))
        await asyncio.sleep(0)
        await feeds.follow("a")
        assert not waiting.done()
        with pytest.raises(BusUnavailable, match=r"did not answer within 0\.2 s"):
            await waiting
        await feeds.close()
