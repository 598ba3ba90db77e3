"""Level 0, through the public face: what handlers see and what becomes of messages, kernel and transport together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from msgspec import Struct

from tidings import App, Backoff, Defer, Delivery, Message, Partial, Reject, Retry, Service, Skip, Topic
from tidings.kernel.errors import AnswerFailed, NoAnswerer, RequestTimeout, TooLarge
from tidings.kernel.topics import DEAD
from tidings.letters import revived
from tidings.schedule import Ticking

from .bus import Rig, needs, scenario
from .ledger import Ledger


class Order(Struct):
    id: int
    note: str = ""


class Invoice(Struct):
    order: int


placed = Topic("orders.placed", Order)
invoiced = Topic("billing.invoiced", Invoice)
prices = Service("prices.quote", Order, Invoice)

QUICK = Backoff(attempts=3, first=0.01, factor=2, jitter=0)


class Letters:
    """The dead letters of a group, as they come."""

    def __init__(self, app: App, group: str) -> None:
        self.came: list[Message[Any]] = []

        @app.on(Topic(DEAD + group, bytes), group=f"{app.name}.letters")
        async def letters(message: Message[bytes]) -> None:
            self.came.append(message)

    def reason(self, index: int = 0) -> str:
        return self.came[index].header("tdgreason")


class Handling:
    """Handlers, failures, dead letters, requests, the life cycle."""

    @scenario
    async def test_app_fans_out_and_publishes_what_is_returned(self, rig: Rig) -> None:
        app, seen = rig.app(), list[Any]()

        @app.on(placed)
        async def bill(order: Order) -> Message[Invoice]:
            return invoiced(Invoice(order.id), key="k")

        @app.on(placed)
        async def ship(order: Order) -> None:
            seen.append(order)

        @app.on(invoiced)
        async def mail(message: Message[Invoice]) -> None:
            seen.append((message.data, message.key, bool(message.causation_id)))

        async with app:
            await app.publish(placed, Order(1, "ünïcode ☃"), headers={"a": "1"})
            await rig.until(lambda: len(seen) == 2)
        assert Order(1, "ünïcode ☃") in seen
        assert (Invoice(1), "k", True) in seen

    @scenario
    async def test_app_runs_handlers_at_once(self, rig: Rig) -> None:
        app, running, most = rig.app(), set[int](), 0
        ledger = Ledger()

        @app.on(placed, concurrency=8)
        async def bill(order: Order, message: Message[Order]) -> None:
            nonlocal most
            running.add(order.id)
            most = max(most, len(running))
            await asyncio.sleep(0.002)
            running.discard(order.id)
            ledger.end("bill", message)

        @app.on(placed)
        async def note(message: Message[Order]) -> None:
            ledger.accept([message])

        async with app:
            await app.publish_many([placed(Order(n)) for n in range(200)])
            await rig.until(lambda: len(ledger.accepted) == 200 and ledger.complete("bill"))
        ledger.check("bill")
        assert 1 < most <= 8

    @scenario
    async def test_app_keeps_the_order_of_a_key_through_failures(self, rig: Rig) -> None:
        """Within a process, waits in place included."""
        app, ledger = rig.app(backoff=QUICK), Ledger()
        drafts = [placed(Order(n), key=f"k{n % 5}", id=f"m{n}") for n in range(150)]

        @app.on(placed)
        async def bill(order: Order, message: Message[Order], delivery: Delivery) -> None:
            ledger.begin("bill", message, delivery.attempt)
            await asyncio.sleep(0.0005)
            if order.id % 9 == 0 and delivery.failures < 2:
                ledger.fail("bill", message, delivery.attempt)
                raise ValueError("not yet")
            ledger.end("bill", message, delivery.attempt)

        async with app:
            await app.publish_many(drafts)
            ledger.accept(drafts)
            await rig.until(lambda: ledger.complete("bill"), 30)
        ledger.check("bill")
        ledger.check_order("bill")

    @scenario
    async def test_app_counts_attempts_and_waits(self, rig: Rig) -> None:
        """In place up to a second, on the bus beyond; the count goes on."""
        app, seen = rig.app(backoff=Backoff(attempts=6, first=0.1, factor=2, jitter=0)), list[tuple[int, float]]()

        @app.on(placed)
        async def bill(order: Order, delivery: Delivery) -> None:
            seen.append((delivery.attempt, rig.clock.monotonic()))
            if len(seen) == 3:
                raise Retry("1.1s")
            if len(seen) < 5:
                raise ValueError("not yet")

        async with app:
            await app.publish(placed, Order(1))
            await rig.until(lambda: len(seen) == 5, 20)
            await asyncio.sleep(0.05)
        assert [attempt for attempt, _ in seen] == [1, 2, 3, 4, 5]
        waits = [after - before for (_, before), (_, after) in pairwise(seen)]
        for wait, least in zip(waits, (0.1, 0.2, 1.1, 0.8), strict=True):
            assert wait >= least - 0.02, f"waited {wait:.3f} s, not {least} s"

    @scenario
    async def test_app_exhaustion_dead_letter_replay(self, rig: Rig) -> None:
        """Used up: to the dead letters with everything; a replay goes to the group that failed, and to nobody else."""
        app, runs, mended = rig.app(backoff=QUICK), Counter[str](), False
        letters = Letters(app, "shop.bill")

        @app.on(placed)
        async def bill(message: Message[Order]) -> None:
            runs["bill"] += 1
            if not mended:
                raise ValueError("broken")
            assert (message.data, message.header("a"), message.topic) == (Order(7), "1", "orders.placed")
            runs["done"] += 1

        @app.on(placed)
        async def ship(order: Order) -> None:
            runs["ship"] += 1

        async with app:
            await app.publish(placed, Order(7), headers={"a": "1"}, key="k", id="m1")
            await rig.until(lambda: bool(letters.came))
            (letter,) = letters.came
            assert runs == {"bill": 3, "ship": 1}
            told = ("tdgreason", "tdgfailures", "tdgerror", "tdggroup")
            assert [letter.header(name) for name in told] == ["failed", "3", "ValueError", "shop.bill"]
            assert "broken" in letter.header("tdgdetail")
            assert "raise ValueError" in letter.header("tdgtraceback")
            assert (letter.id, letter.key, letter.topic, letter.header("a")) == ("m1", "k", "orders.placed", "1")
            mended = True
            sealed: Message[Any] = Message(
                "orders.placed", body=b'{"id":7}', id=letter.id, key=letter.key, headers=letter.headers
            )
            await rig.publish(app.bus(), revived(sealed, "shop.bill"))
            await rig.until(lambda: runs["done"] == 1)
            await asyncio.sleep(0.05)
        assert runs == {"bill": 4, "ship": 1, "done": 1}
        assert len(letters.came) == 1

    @scenario
    async def test_app_rejects_what_can_never_be_handled(self, rig: Rig) -> None:
        """Undecodable, rejected, of the wrong return type, given up: to the dead letters at once, with the reason."""
        app = rig.app(backoff=Backoff(first=0.01, give_up=(KeyError,)))
        letters, runs = Letters(app, "shop.bill"), list[int]()

        @app.on(placed)
        async def bill(order: Order) -> Any:
            runs.append(order.id)
            if order.id == 1:
                raise Reject("never")
            if order.id == 2:
                raise KeyError("x")
            return 42

        async with app:
            foreign: Message[Any] = Message("orders.placed", body=b"{broken", id="foreign")
            await rig.publish(app.bus(), foreign)
            await app.publish_many([placed(Order(n)) for n in (1, 2, 3)])
            await rig.until(lambda: len(letters.came) == 4)
        reasons = sorted(letter.header("tdgreason") for letter in letters.came)
        assert reasons == ["rejected", "rejected", "undecodable", "wrong return type"]
        assert sorted(runs) == [1, 2, 3], "none runs twice"

    @scenario
    async def test_app_defers_and_skips_without_counting(self, rig: Rig) -> None:
        app, seen = rig.app(backoff=QUICK), list[tuple[int, int]]()
        letters = Letters(app, "shop.bill")

        @app.on(placed)
        async def bill(order: Order, delivery: Delivery) -> None:
            seen.append((order.id, delivery.attempt))
            if order.id == 2:
                raise Skip("not ours")
            if len(seen) < 6:
                raise Defer(0.02)

        async with app:
            await app.publish_many([placed(Order(1)), placed(Order(2))])
            await rig.until(lambda: len(seen) >= 6)
            await asyncio.sleep(0.05)
            assert app.stats()["shop.bill"].skipped == 1
        assert sorted(seen) == [(1, 1)] * 5 + [(2, 1)]
        assert not letters.came

    @scenario
    async def test_app_output_that_is_refused_fails_its_input(self, rig: Rig) -> None:
        app, got = rig.app(backoff=QUICK), list[int]()
        letters = Letters(app, "shop.bill")

        @app.on(placed)
        async def bill(order: Order) -> Message[Any]:
            most = app.bus().capabilities.max_payload
            return Topic("billing.big", bytes)(b"x" * (most + 1 if order.id == 1 else 10))

        @app.on(Topic("billing.big", bytes))
        async def mail(body: bytes) -> None:
            got.append(len(body))

        async with app:
            await app.publish_many([placed(Order(n)) for n in range(3)])
            await rig.until(lambda: len(got) == 2 and len(letters.came) == 1, 20)
        assert letters.reason() == "failed"

    @scenario
    @needs("expiry")
    async def test_app_drops_what_has_expired(self, rig: Rig) -> None:
        app, seen = rig.app(), list[int]()

        @app.on(placed, concurrency=1)
        async def bill(order: Order) -> None:
            seen.append(order.id)
            await asyncio.sleep(0.3)

        async with app:
            await app.publish(placed, Order(1))
            await rig.until(lambda: seen == [1])
            await app.publish(placed, Order(2), expires=0.1)
            await app.publish(placed, Order(3), expires=60)
            await rig.until(lambda: len(seen) == 2)
            await asyncio.sleep(0.05)
            assert app.stats()["shop.bill"].expired == 1
        assert seen == [1, 3]

    @scenario
    @needs("delay", "priority")
    async def test_app_delays_and_priorities(self, rig: Rig) -> None:
        app, seen = rig.app(), list[int]()

        @app.on(placed, concurrency=1)
        async def bill(order: Order) -> None:
            seen.append(order.id)

        async with app.connect():
            pass
        async with app:
            app.pause("shop.bill")
            await asyncio.sleep(0.05)
            began = rig.clock.now()
            await app.publish(placed, Order(4), delay=0.4)
            for n, priority in ((3, 0), (1, 9), (2, 5)):
                await app.publish(placed, Order(n), priority=priority)
            app.pause("shop.bill", False)
            await rig.until(lambda: len(seen) == 4)
            assert rig.clock.now() - began >= 0.399
        assert seen[-1] == 4
        assert sorted(seen) == [1, 2, 3, 4]

    # -- requests

    @scenario
    @needs("request")
    async def test_app_request_reply(self, rig: Rig) -> None:
        app, asking = rig.app(), rig.app("web")

        @app.answer(prices)
        async def quote(order: Order) -> Invoice:
            if order.id < 0:
                raise ValueError("no such order")
            if order.id == 0:
                await asyncio.sleep(1)
            return Invoice(order.id * 2)

        async with asking.connect():
            with pytest.raises(NoAnswerer):
                await asking.request(prices, Order(1), timeout=1)
            async with app:
                replies = await asyncio.gather(*(asking.request(prices, Order(n)) for n in range(1, 51)))
                assert [reply.order for reply in replies] == [2 * n for n in range(1, 51)]
                with pytest.raises(AnswerFailed, match="no such order"):
                    await asking.request(prices, Order(-1))
                with pytest.raises(RequestTimeout):
                    await asking.request(prices, Order(0), timeout=0.2)

    @scenario
    @needs("request")
    async def test_app_streams_replies(self, rig: Rig) -> None:
        app = rig.app()

        @app.answer(prices)
        async def quotes(order: Order) -> AsyncIterator[Invoice]:
            for n in range(order.id):
                yield Invoice(n)

        async with app:
            replies = [reply.order async for reply in app.request_stream(prices, Order(20))]
            assert replies == list(range(20))
            assert [reply async for reply in app.request_stream(prices, Order(0))] == []

    # -- batches, live, bodies

    @scenario
    async def test_app_batch_with_partial_failure(self, rig: Rig) -> None:
        app, ledger, failed = rig.app(backoff=QUICK), Ledger(), Counter[int]()
        sizes: list[int] = []

        @app.on(placed, batch=20, within="20ms")
        async def index(messages: list[Message[Order]]) -> None:
            sizes.append(len(messages))
            bad = {
                at: ValueError("no") for at, m in enumerate(messages) if m.data.id % 10 == 3 and not failed[m.data.id]
            }
            for at, message in enumerate(messages):
                if at in bad:
                    failed[message.data.id] += 1
                else:
                    ledger.end("index", message)
            if bad:
                raise Partial(bad)

        drafts = [placed(Order(n), id=f"m{n}") for n in range(100)]
        async with app:
            await app.publish_many(drafts)
            ledger.accept(drafts)
            await rig.until(lambda: ledger.complete("index"))
        ledger.check("index")
        assert max(sizes) > 1, "inconclusive: never a batch"
        assert max(sizes) <= 20
        assert len(failed) == 10

    @scenario
    async def test_app_live_handlers_have_their_own_copy(self, rig: Rig) -> None:
        apps, seen = [rig.app(), rig.app()], Counter[int]()
        for n, app in enumerate(apps):

            async def show(order: Order, n: int = n) -> None:
                seen[n] += 1
                raise ValueError("at most once")

            app.on(placed, live=True)(show)
        async with apps[0], apps[1]:
            await apps[0].publish_many([placed(Order(n)) for n in range(10)])
            await rig.until(lambda: seen == {0: 10, 1: 10})
            await asyncio.sleep(0.05)
        assert seen == {0: 10, 1: 10}

    @scenario
    async def test_app_bodies(self, rig: Rig) -> None:
        """Empty and large ones, bytes and text; what leaves no room for a dead letter's context is refused."""
        app, seen = rig.app(), list[Any]()

        @app.on(Topic("raw.bytes", bytes))
        async def raw(body: bytes) -> None:
            seen.append(body)

        @app.on(Topic("raw.text", str))
        async def text(body: str) -> None:
            seen.append(body)

        @app.on(Topic("raw.maybe", Order | None))
        async def maybe(order: Order | None) -> None:
            seen.append(order)

        async with app:
            most = app.bus().capabilities.max_payload - 16 * 1024
            for topic, payload in (("raw.bytes", b""), ("raw.text", ""), ("raw.text", "☃"), ("raw.bytes", b"x" * most)):
                await app.publish(Topic(topic), payload)
            await app.publish(Topic("raw.maybe"), None)
            with pytest.raises(TooLarge):
                await app.publish(Topic("raw.bytes"), b"x" * (most + 1))
            await rig.until(lambda: len(seen) == 5, 30)
        wanted = [b"", "", "☃", None, b"x" * most]
        assert all(item in seen for item in wanted)

    # -- the life cycle

    @scenario
    async def test_app_stop_in_handler_loses_nothing(self, rig: Rig) -> None:
        """Stopped in the middle, and continued by others: each message once, each attempt the first."""
        await rig.open()  # a bus may last only as long as somebody has it open
        ledger, rounds = Ledger(), 0
        drafts = [placed(Order(n), id=f"m{n}") for n in range(100)]
        starting = rig.app()
        starting.on(placed, group="shop.bill")(_nothing)
        async with starting:  # the group exists from here on
            pass
        async with rig.app().connect() as publisher:
            await publisher.publish_many(drafts)
            ledger.accept(drafts)
        while not ledger.complete("bill"):
            rounds += 1
            assert rounds < 20, f"{len(ledger.handled('bill'))} of 100 handled"
            await self._until_stopped(rig, ledger)
        ledger.check("bill")
        assert rounds > 2, "inconclusive: it was never stopped in the middle"
        assert {entry.attempt for entry in ledger.entries} == {1}, "a stop was counted as a failure"

    async def _until_stopped(self, rig: Rig, ledger: Ledger) -> None:
        app, count = rig.app(), 0

        @app.on(placed, concurrency=4)
        async def bill(message: Message[Order], delivery: Delivery) -> None:
            nonlocal count
            count += 1
            if count == 20:
                app.stop()
            await asyncio.sleep(0.001)
            ledger.end("bill", message, delivery.attempt)

        async with app:
            await rig.until(lambda: count >= 20 or ledger.complete("bill"))

    @scenario
    async def test_app_pause_bounds_what_is_in_hand(self, rig: Rig) -> None:
        """Paused is not receiving: the backlog stays on the bus; resumed, everything comes."""
        app, seen = rig.app(), list[int]()

        @app.on(placed, concurrency=2)
        async def bill(order: Order) -> None:
            seen.append(order.id)

        async with app:
            app.pause("shop.bill")
            await asyncio.sleep(0.02)
            await app.publish_many([placed(Order(n)) for n in range(3000)])
            await asyncio.sleep(0.1)
            assert len(seen) <= 2, "a paused handler ran"
            bus: Any = app.bus()
            if hasattr(bus, "groups"):
                (info,) = await bus.groups()
                assert info.in_flight <= 1024, f"{info.in_flight} in hand while paused"
            app.pause("shop.bill", False)
            await rig.until(lambda: len(seen) == 3000)
        assert sorted(seen) == list(range(3000))

    @scenario
    @needs("lease")
    async def test_app_slow_handler_outlives_its_lease(self, rig: Rig) -> None:
        """Renewed while it works; what waits behind it is renewed too."""
        lease, seen = rig.bus.lease, list[tuple[int, int]]()
        apps = [rig.app(lease=lease) for _ in range(2)]
        for app in apps:

            async def bill(order: Order, delivery: Delivery) -> None:
                if order.id == 0:
                    await asyncio.sleep(3.5 * lease)
                seen.append((order.id, delivery.attempt))

            app.on(placed, concurrency=1)(bill)
        async with apps[0], apps[1]:
            await apps[0].publish_many([placed(Order(n), key="k") for n in range(5)])
            await rig.until(lambda: len(seen) == 5, 10 * lease + 10)
            await asyncio.sleep(0.1)
        assert sorted(seen) == [(n, 1) for n in range(5)], "a renewed delivery was handed out again"

    @scenario
    @needs("ordered")
    async def test_app_ordered_group_of_two_with_failures(self, rig: Rig) -> None:
        """Beyond one process and beyond waits in place: a failed message holds its key."""
        ledger = Ledger()
        drafts = [placed(Order(n), key=f"k{n % 60}", id=f"m{n}") for n in range(360)]
        apps = [rig.app() for _ in range(2)]
        for number, app in enumerate(apps):

            async def bill(message: Message[Order], delivery: Delivery, number: int = number) -> None:
                ledger.begin("bill", message, delivery.attempt, f"m{number}")
                await asyncio.sleep(0.001)
                if message.data.id % 120 == 1 and delivery.failures < 1:
                    ledger.fail("bill", message, delivery.attempt, f"m{number}")
                    raise Retry("1.05s")
                ledger.end("bill", message, delivery.attempt, f"m{number}")

            app.on(placed, ordered=True)(bill)
        async with apps[0], apps[1]:
            for at in range(0, 360, 90):
                ledger.accept(drafts[at : at + 90])
                await apps[0].publish_many(drafts[at : at + 90])
                await asyncio.sleep(0.05)
            await rig.until(lambda: ledger.complete("bill"), 30)
        ledger.check("bill")
        ledger.check_order("bill", members=2)
        assert sum(entry.what == "fail" for entry in ledger.entries) == 3, "inconclusive: nothing failed"

    @scenario
    @needs("ordered")
    async def test_app_ordered_group_with_a_deep_backlog(self, rig: Rig) -> None:
        """What was fetched in advance does not overtake a failed message of its key that waits on the bus."""
        app, ledger = rig.app(), Ledger()
        drafts = [placed(Order(n), key=f"k{n % 10}", id=f"m{n}") for n in range(600)]

        @app.on(placed, ordered=True, concurrency=4)
        async def bill(message: Message[Order], delivery: Delivery) -> None:
            ledger.begin("bill", message, delivery.attempt)
            await asyncio.sleep(0)
            if message.data.id % 33 == 7 and not delivery.failures:
                ledger.fail("bill", message, delivery.attempt)
                raise Retry("1.05s")
            ledger.end("bill", message, delivery.attempt)

        async with app:
            ledger.accept(drafts)
            for at in range(0, 600, 20):
                await app.publish_many(drafts[at : at + 20])
            await rig.until(lambda: ledger.complete("bill"), 30)
        ledger.check("bill")
        ledger.check_order("bill")
        assert sum(entry.what == "fail" for entry in ledger.entries) == 18, "inconclusive: not all that should failed"

    @scenario
    @needs("start")
    async def test_app_start_reads_what_is_retained(self, rig: Rig) -> None:
        await rig.open()
        async with rig.app().connect() as publisher:
            await publisher.publish_many([placed(Order(n)) for n in range(10)])
        app, seen = rig.app(), list[int]()

        @app.on(placed, start="first")
        async def bill(order: Order) -> None:
            seen.append(order.id)

        @app.on(placed)
        async def ship(order: Order) -> None:
            seen.append(-1)

        async with app:
            await rig.until(lambda: len(seen) == 10)
            await asyncio.sleep(0.05)
        assert seen == list(range(10))

    @scenario
    @needs("wildcards")
    async def test_app_wildcards_and_captures(self, rig: Rig) -> None:
        app, seen = rig.app(), list[tuple[str, int]]()

        @app.on(Topic("sensors.{device}.temperature", int))
        async def watch(value: int, device: str) -> None:
            seen.append((device, value))

        async with app:
            for n in range(5):
                await app.publish(Topic("sensors.{device}.temperature", int).bind(device=f"d{n}"), n)
            await app.publish(Topic("sensors.d1.humidity"), 9)
            await rig.until(lambda: len(seen) == 5)
        assert sorted(seen) == [(f"d{n}", n) for n in range(5)]

    @scenario
    async def test_app_ticks_once_over_replicas(self, rig: Rig) -> None:
        """Each tick runs on one of two replicas, and is tried again when it fails, as any message is."""
        if not isinstance(await rig.open(), Ticking):
            pytest.skip("not Ticking")
        apps, tried, done = [rig.app(backoff=QUICK) for _ in range(2)], Counter[str](), Counter[str]()
        for app in apps:

            @app.every("300ms")
            async def sample(message: Message[Any]) -> None:
                tried[message.id] += 1
                if len(tried) == 2 and tried[message.id] == 1:
                    raise ValueError("the second tick, at first")
                done[message.id] += 1

        async with apps[0], apps[1]:
            await rig.until(lambda: len(done) >= 4)
        assert set(done.values()) == {1}, done
        assert sorted(tried.values())[-2:] == [1, 2], tried


async def _nothing(order: Any) -> None:
    """A handler for a group that only needs to exist."""
