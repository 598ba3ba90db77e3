"""Wire taps: what is copied and what not, and that the tapped flow never knows."""

from __future__ import annotations

from typing import Any

import pytest
from tests.kernel.rig import until, virtual

from tidings import App, Backoff, Message, Router, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import WireTap
from tidings.patterns.wire_tap import WAITING
from tidings.testing import running
from tidings.transports.memory import Memory

numbers, doubled = Topic("numbers", int), Topic("doubled", int)
taps, ended = Topic("taps", bytes), Topic("ended", bytes)


@virtual
async def test_copies_of_what_comes_and_goes() -> None:
    app = App("shop", "memory://")

    @app.on(numbers, middleware=[WireTap(app, taps, published=True)])
    async def double(n: int) -> Message[int]:
        return doubled(2 * n)

    async with running(app) as captured:
        await app.publish(numbers(21, key="k", headers={"a": "b"}, id="mine", expires="1h", priority=2))
        await captured.idle()
        [came, went] = await captured.messages("taps")
        [result] = await captured.messages("doubled")
    assert (came.body, came.key, came.headers, came.type, came.source) == (b"21", "k", (("a", "b"),), "numbers", "shop")
    assert (came.causation_id, came.correlation_id, came.expires_at) == ("mine", "mine", None)
    assert came.id != "mine"
    assert (went.body, went.type, went.causation_id, went.correlation_id) == (b"42", "doubled", result.id, "mine")


@virtual
async def test_each_attempt_is_seen_and_failures_publish_nothing() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=3, first=0.1))

    @app.on(numbers, middleware=[WireTap(app, taps, published=True)])
    async def fail(n: int) -> Message[int]:
        raise OSError

    async with running(app) as captured:
        await app.publish(numbers(1))
        await captured.idle()
        assert [m.body for m in await captured.messages("taps")] == [b"1"] * 3


@virtual
async def test_batches_and_the_whole_app() -> None:
    tap: Any = None

    def later(one: Any) -> Any:
        return tap(one)

    later.many = lambda many: tap.many(many)  # type: ignore[attr-defined]
    app = App("shop", "memory://", middleware=[later])
    tap = WireTap(app, taps, received=False, published=True)

    @app.on(numbers, batch=10)
    async def double(ns: list[int]) -> list[Message[int]]:
        return [doubled(2 * n) for n in ns]

    @app.on(taps)
    async def watch(body: bytes) -> Message[bytes]:
        return ended(body)

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(3)])
        await captured.idle()
        bodies = [m.body for m in await captured.messages("taps")]
        ends = await captured.messages("ended")
    assert sorted(bodies) == [b"0", b"2", b"4"]
    assert len(ends) == 3  # a copy of what came of a copy would have no end


@virtual
async def test_a_share_of_conversations_is_copied_whole() -> None:
    app = App("shop", "memory://")
    tap = WireTap(app, taps, rate=0.25, published=True)

    @app.on(numbers, middleware=[tap])
    async def double(n: int) -> Message[int]:
        return doubled(2 * n)

    async with running(app) as captured:
        await app.publish_many([numbers(n, id=f"m{n}") for n in range(1000)])
        await captured.idle()
        copies = await captured.messages("taps")
    conversations = {m.correlation_id for m in copies}
    assert 180 < len(conversations) < 320
    assert len(copies) == 2 * len(conversations)


@virtual
async def test_a_bus_that_takes_no_copies_hurts_nobody() -> None:
    far = Topic("taps", bytes, bus="far")
    app = App("shop", Memory(), far=Memory(messages=10))
    tap = WireTap(app, far)

    @app.on(numbers, middleware=[tap])
    async def double(n: int) -> Message[int]:
        return doubled(2 * n)

    @app.on(far)
    async def watch(body: bytes) -> None: ...

    async with app:
        app.pause("shop.watch")
        await app.publish_many([numbers(n) for n in range(3000)])
        await until(lambda: app.stats()["shop.double"].handled == 3000)
        await until(lambda: tap._publishing is not None and tap._publishing.done())
        bus: Any = app.bus()
        assert len(await bus.peek("doubled", limit=5000)) == 3000
        assert (await bus.peek("_dead.>")) == []
        stored: Any = app.bus("far")
        kept = len(await stored.peek("taps", limit=5000))
    assert tap.lost + kept == 3000
    assert kept < 3000
    assert tap.lost > 0


@virtual
async def test_copies_that_come_faster_than_they_can_be_published_are_lost_and_counted() -> None:
    app = App("shop", "memory://")
    tap, sizes = WireTap(app, taps), list[int]()

    @app.on(numbers, batch=2000, within="10s", middleware=[tap])
    async def take(ns: list[int]) -> None:
        sizes.append(len(ns))

    async with running(app) as captured:
        await app.publish_many([numbers(n) for n in range(2000)])
        await captured.idle()
        assert sizes == [2000]
        assert len(await captured.messages("taps")) == WAITING
    assert tap.lost == 2000 - WAITING


def test_what_cannot_be_is_refused() -> None:
    app: Any = App("shop", "memory://")
    for wrong in (-0.1, 1.1):
        with pytest.raises(InvalidOption, match="rate cannot be"):
            WireTap(app, taps, rate=wrong)
    with pytest.raises(InvalidOption, match="to cannot be"):
        WireTap(app, Topic("taps.{x}", bytes))
    not_an_app: Any = Router()
    with pytest.raises(InvalidOption, match="publishes by an app"):
        WireTap(not_an_app, taps)
