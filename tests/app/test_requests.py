"""Asking and answering: one reply, many, none, or an error; in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from msgspec import Struct
from tests.app import answerers
from tests.kernel.rig import until, virtual

from tidings import App, Message, NoAnswerer, RequestError, RequestTimeout, Service, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import AnswerFailed, ReplyRestarted
from tidings.kernel.message import new_id


class Quote(Struct):
    item: str
    count: int = 1


class Price(Struct):
    total: float


prices = Service("prices.quote", Quote, Price)
counting = Service("numbers.count", int, int)


def app(**more: Any) -> App:
    return App("shop", "memory://", **more)


@virtual
async def test_a_request_and_its_reply() -> None:
    a, seen = app(), list[Message[Any]]()

    @a.answer(prices)
    async def quote(q: Quote, message: Message[Quote]) -> Price:
        seen.append(message)
        return Price(q.count * 1.5)

    async with a:
        assert await a.request(prices, Quote("x", 4)) == Price(6.0)
        assert await a.request("prices.quote", {"item": "y"}, Price) == Price(1.5)
        assert await a.request("prices.quote", {"item": "y"}, dict[str, float]) == {"total": 1.5}
        assert seen[0].topic == "prices.quote"
        assert seen[0].reply_to
        await until(lambda: a.stats()["prices.quote"].handled == 3)


@virtual
async def test_many_at_once_and_each_its_own() -> None:
    a = app()

    @a.answer(counting)
    async def answer(n: int) -> int:
        await asyncio.sleep(1 / (n + 1))
        return n * n

    async with a:
        replies = await asyncio.gather(*(a.request(counting, n) for n in range(200)))
    assert replies == [n * n for n in range(200)]


@virtual
async def test_streamed_replies() -> None:
    a = app()

    @a.answer(counting)
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async with a:
        assert [i async for i in a.request_stream(counting, 5)] == [0, 1, 2, 3, 4]
        assert [i async for i in a.request_stream("numbers.count", 3, int)] == [0, 1, 2]
        assert [i async for i in a.request_stream(counting, 0)] == []
        assert await a.request(counting, 3) == 0
        with pytest.raises(AnswerFailed, match="without one"):
            await a.request(counting, 0)


@virtual
async def test_an_error_is_an_error_reply_and_the_answerer_ran_once() -> None:
    a, runs = app(), 0

    @a.answer(prices)
    async def quote(q: Quote) -> Price:
        nonlocal runs
        runs += 1
        raise LookupError("no such item")

    @a.answer(counting)
    async def count(n: int) -> AsyncIterator[int]:
        yield 1
        raise ValueError("half-way")

    async with a:
        with pytest.raises(AnswerFailed, match="LookupError: no such item"):
            await a.request(prices, Quote("x"))
        with pytest.raises(AnswerFailed, match="Undecodable"):
            await a.request("prices.quote", {"wrong": 1}, Price)
        stream = a.request_stream(counting, 1)
        assert await anext(stream) == 1
        with pytest.raises(AnswerFailed, match="half-way"):
            await anext(stream)
        assert runs == 1
        await until(lambda: a.stats()["prices.quote"].handled == 2)
        assert not await a.bus().peek("_dead.>")  # type: ignore[attr-defined]


@virtual
async def test_nobody_answers() -> None:
    async with app().connect() as a:
        with pytest.raises(NoAnswerer):
            await a.request(prices, Quote("x"))
        with pytest.raises(NoAnswerer):
            _ = [price async for price in a.request_stream(prices, Quote("x"))]


@virtual
async def test_too_late() -> None:
    a = app()

    @a.answer(prices)
    async def quote(q: Quote) -> Price:
        await asyncio.sleep(100)
        return Price(1.0)

    async with a:
        began = current_clock().monotonic()
        with pytest.raises(RequestTimeout, match="within 2 s"):
            await a.request(prices, Quote("x"), timeout="2s")
        assert current_clock().monotonic() - began == pytest.approx(2, abs=0.01)
        await asyncio.sleep(200)  # the reply comes, and nobody waits
        assert a._requesters[""].pending == {}


@virtual
async def test_what_nobody_waits_for_any_more_is_not_answered() -> None:
    """The deadline is the request's expiry."""
    a, seen = app(), list[str]()

    @a.answer(prices, concurrency=1)
    async def quote(q: Quote) -> Price:
        seen.append(q.item)
        await asyncio.sleep(10)
        return Price(1.0)

    async with a:
        first = asyncio.ensure_future(a.request(prices, Quote("first"), timeout="60s"))
        await until(lambda: seen == ["first"])
        with pytest.raises(RequestTimeout):
            await a.request(prices, Quote("late"), timeout="2s")
        assert await first == Price(1.0)
        await asyncio.sleep(30)
        assert seen == ["first"]
        assert a.stats()["prices.quote"].expired == 1


@virtual
async def test_a_slow_reader_is_told_and_not_cancelled() -> None:
    """The deadline of a stream passes while the caller does something else: that is not interrupted."""
    a = app()

    @a.answer(counting)
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0.1)
            yield i

    async with a:
        came = []
        with contextlib.suppress(RequestTimeout):
            async for i in a.request_stream(counting, 50, timeout="1s"):
                came.append(i)
                await asyncio.sleep(0.3)
        assert came == list(range(len(came)))
        assert len(came) >= 3
        stream = a.request_stream(counting, 5, timeout="1s")
        async for _ in stream:
            break
        await asyncio.sleep(10)  # was cancelled by the timer of a stream it had left
        await stream.aclose()  # type: ignore[attr-defined]
        assert a._requesters[""].pending == {}


@virtual
async def test_what_a_reader_leaves_unread_does_not_fill_the_memory() -> None:
    a, sent = app(), asyncio.Event()

    @a.answer(counting)
    async def count(to: int) -> AsyncIterator[int]:
        for i in range(to):
            yield i
            if not i % 100:
                await asyncio.sleep(0.001)  # the bus delivers meanwhile
        sent.set()

    async with a:
        stream = a.request_stream(counting, 10_500, timeout="1h")
        assert await anext(stream) == 0
        await sent.wait()
        with pytest.raises(RequestError, match="read faster"):
            _ = [i async for i in stream]


@virtual
async def test_an_answerer_past_its_timeout_says_so() -> None:
    a = app()

    @a.answer(prices, timeout="8s")
    async def quote(q: Quote) -> Price:
        await asyncio.sleep(1000)
        return Price(1.0)

    async with a:
        with pytest.raises(AnswerFailed, match="HandlerTimeout"):
            await a.request(prices, Quote("x"), timeout="100s")


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([("run1", 0, "item"), ("run2", 0, "item")], ReplyRestarted),
        ([("run1", 0, "item"), ("run1", 2, "item")], RequestError),
        ([("run1", 0, "item"), ("run1", 3, "end")], RequestError),
        ([("run1", 1, "item")], RequestError),
        ([("run1", 0, "item"), ("run1", 0, "item"), ("run1", 1, "item"), ("run1", 2, "end")], None),
    ],
    ids=["restarted", "gap", "lost end", "lost beginning", "repeated"],
)
@virtual
async def test_replies_of_another_run_or_with_a_gap(
    replies: list[tuple[str, int, str]], error: type[Exception] | None
) -> None:
    a = app()

    @a.answer(counting)
    async def by_hand(n: int, message: Message[int]) -> int:
        for run, index, kind in replies:
            headers = (("tdgreply", kind), ("tdgrun", run), ("tdgindex", str(index)))
            fields: dict[str, Any] = {"headers": headers, "correlation_id": message.id, "address": message.reply_to}
            reply: Message[Any] = Message("numbers.count", body=str(index).encode(), id=new_id(), **fields)
            assert not await a.bus().publish([reply])
        await asyncio.sleep(100)
        return 0

    async with a:
        if error is None:
            assert [i async for i in a.request_stream(counting, 1)] == [0, 1]
        else:
            with pytest.raises(error) as failure:
                _ = [i async for i in a.request_stream(counting, 1)]
            assert type(failure.value) is error


@virtual
async def test_all_answerers_of_a_service_compete() -> None:
    apps = [App(f"replica{n}", "memory://competing") for n in range(3)]
    ran: dict[str, int] = {}

    for a in apps:

        async def answer(n: int, owner: App) -> int:
            ran[owner.name] = ran.get(owner.name, 0) + 1
            await asyncio.sleep(0.01)
            return n

        a.answer(counting)(answer)
    async with apps[0], apps[1], apps[2]:
        replies = await asyncio.gather(*(apps[0].request(counting, n) for n in range(300)))
    assert replies == list(range(300))
    assert sum(ran.values()) == 300
    assert len(ran) == 3


@virtual
async def test_subscribers_see_no_requests() -> None:
    a, seen = app(), list[Any]()

    @a.answer(prices)
    async def quote(q: Quote) -> Price:
        return Price(1.0)

    @a.on(">")
    async def audit(message: Message[Any]) -> None:
        seen.append(message.topic)

    async with a:
        await a.request(prices, Quote("x"))
        await asyncio.sleep(10)
    assert seen == []


@virtual
async def test_asking_while_connected_only_and_from_a_handler() -> None:
    server, client, seen = App("server", "memory://asking"), App("client", "memory://asking"), list[Any]()

    @server.answer(prices)
    async def quote(q: Quote) -> Price:
        return Price(2.0)

    @client.on("orders.placed")
    async def order(item: str, owner: App) -> None:
        seen.append(await owner.request(prices, Quote(item)))

    async with server, client.connect():
        assert await client.request(prices, Quote("x")) == Price(2.0)
    async with server, client:
        await client.publish(Topic("orders.placed", str), "x")
        await until(lambda: seen == [Price(2.0)])


async def test_answerers_in_threads() -> None:
    a = app()

    @a.answer(prices)
    def quote(q: Quote) -> Price:
        if q.count < 0:
            raise ValueError("negative")
        return Price(q.count * 2.0)

    @a.answer("numbers.count")
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    async with asyncio.timeout(20), a:
        assert await a.request(prices, Quote("x", 3)) == Price(6.0)
        with pytest.raises(AnswerFailed, match="ValueError: negative"):
            await a.request(prices, Quote("x", -1))
        assert [i async for i in a.request_stream(counting, 3)] == [0, 1, 2]


async def test_answerers_in_processes() -> None:
    async with asyncio.timeout(30), answerers.app as a:
        assert await a.request(answerers.double, 21) == 42
        with pytest.raises(AnswerFailed, match="ValueError: no zero"):
            await a.request(answerers.double, 0)
        with pytest.raises(AnswerFailed, match="HandlerCrashed"):
            await a.request(answerers.double, -1)
        assert await a.request(answerers.double, 4) == 8
