"""Handlers that keep records, through an app: on its own bus, and beside one that keeps none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.conformance.engines import engine_bus
from tests.state.stores import STORES, url_of
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Partial, Reject, State, Table, Topic, UsageError, transact
from tidings.kernel.errors import InvalidHandler, InvalidName, PayloadRefused, Unsupported
from tidings.store import Unit, Write, new_version

BESIDE = ("nats", "redis")  # buses that keep none; a SQLite file does it for them
KINDS = (*STORES, *BESIDE)


class Payment(Struct):
    account: str
    cents: int


class Balance(Struct):
    cents: int = 0
    payments: int = 0


paid, receipts = Topic("paid", Payment), Topic("receipts", Balance)
balances = Table("balances", Balance)


def app_on(kind: str, folder: Path, **more: Any) -> App:
    if kind in BESIDE:
        return App("shop", engine_bus(kind).options(2.0), state=f"sqlite:///{folder / 'state.db'}", **more)
    return App("shop", url_of(kind, folder), **more)


def store_of(app: App) -> Any:
    return app.bus("state" if "state" in app.urls else "")


async def kept(app: App, table: Table[Any], prefix: str = "") -> dict[str, Any]:
    return {r.key: table.decode(r.value) for r in await store_of(app).scan(table.name, prefix)}


@asynccontextmanager
async def receiving(app: App, topic: Topic[Any]) -> AsyncIterator[list[Message[Any]]]:
    """The app, open, and what arrives at a topic."""
    arrived: list[Message[Any]] = []

    @app.on(topic, group="shop.test-receiver")
    async def receive(message: Message[Any]) -> None:
        arrived.append(message)

    async with app:
        yield arrived


def add(before: Balance | None, payment: Payment) -> Balance:
    before = before or Balance()
    return Balance(before.cents + payment.cents, before.payments + 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_message_counts_once_though_many_run_at_a_time(kind: str, tmp_path: Path) -> None:
    app, running, most = app_on(kind, tmp_path), 0, 0

    @app.on(paid, concurrency=8)
    async def book(payment: Payment, state: State) -> Message[Balance] | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        balance = add(await state.get(balances, payment.account), payment)
        await asyncio.sleep(0)  # others run meanwhile, with the same account
        state.put(balances, payment.account, balance)
        running -= 1
        return receipts(balance, key=payment.account) if balance.payments % 10 == 0 else None

    payments = [Payment(f"a{n % 3}", n) for n in range(300)]
    async with receiving(app, receipts) as arrived:
        await app.publish_many([paid(payment) for payment in payments])
        await until(lambda: len(arrived) == 30 and app.stats()["shop.book"].handled == 300)
        expected: Counter[str] = Counter()
        for payment in payments:
            expected[payment.account] += payment.cents
        assert await kept(app, balances) == {a: Balance(cents, 100) for a, cents in expected.items()}
        assert app.stats()["shop.book"].failed == 0
    assert most > 1
    assert Counter((m.key, m.data.payments) for m in arrived) == Counter(
        (f"a{a}", n) for a in range(3) for n in range(10, 101, 10)
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failure_leaves_no_trace_and_the_next_run_reads_what_is_there(kind: str, tmp_path: Path) -> None:
    app, seen = app_on(kind, tmp_path, backoff=Backoff(attempts=3, first=0.01)), list[Any]()

    @app.on(paid)
    async def book(payment: Payment, state: State) -> Message[Balance]:
        seen.append(await state.get(balances, payment.account))
        state.put(balances, payment.account, Balance(payment.cents, 1))
        if len(seen) < 3:
            raise RuntimeError("not now")
        return receipts(Balance(payment.cents))

    async with receiving(app, receipts) as arrived:
        await app.publish(paid, Payment("a", 5))
        await until(lambda: arrived)
        assert seen == [None, None, None]
        assert await kept(app, balances) == {"a": Balance(5, 1)}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_written_for_a_dead_letter_is_not_there(kind: str, tmp_path: Path) -> None:
    app = app_on(kind, tmp_path)

    @app.on(paid)
    async def book(payment: Payment, state: State) -> None:
        state.put(balances, payment.account, Balance())
        if payment.cents < 0:
            raise Reject("a debt")

    async with app:
        await app.publish(paid, Payment("bad", -1))
        await app.publish(paid, Payment("good", 1))
        await until(lambda: (app.stats()["shop.book"].dead, app.stats()["shop.book"].handled) == (1, 1))
        assert list(await kept(app, balances)) == ["good"]


@pytest.mark.parametrize("kind", STORES)
async def test_two_processes_do_not_overwrite_each_other(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    apps = [App("shop", url), App("shop", url)]
    handled = [0, 0]

    def register(number: int) -> None:
        @apps[number].on(paid, group="shop.book")
        async def book(payment: Payment, state: State) -> None:
            balance = add(await state.get(balances, payment.account), payment)
            await asyncio.sleep(0)
            state.put(balances, payment.account, balance)
            handled[number] += 1

    register(0)
    register(1)
    async with apps[0] as app, apps[1]:
        for n in range(40):
            await app.publish_many([paid(Payment("hot", 1)) for _ in range(10)])
            await until(lambda n=n: sum(a.stats()["shop.book"].handled for a in apps) >= n * 10 - 50)
        await until(lambda: sum(a.stats()["shop.book"].handled for a in apps) == 400)
        assert await kept(app, balances) == {"hot": Balance(400, 400)}
    assert all(handled), "one of them had nothing to do, so nothing was tried"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_is_one_transaction(kind: str, tmp_path: Path) -> None:
    app, sizes = app_on(kind, tmp_path), list[int]()

    @app.on(paid, batch=50, within="50ms", concurrency=1)
    async def book(payments: list[Message[Payment]], state: State) -> list[Message[Balance]]:
        sizes.append(len(payments))
        now = await state.get_many(balances, (message.data.account for message in payments))
        for message in payments:
            now[message.data.account] = add(now.get(message.data.account), message.data)
        for account, balance in now.items():
            state.put(balances, account, balance)
        return [receipts(balance, key=account) for account, balance in now.items()]

    async with receiving(app, receipts) as arrived:
        await app.publish_many([paid(Payment(f"a{n % 5}", 1)) for n in range(200)])
        await until(lambda: app.stats()["shop.book"].handled == 200)
        assert await kept(app, balances) == {f"a{n}": Balance(40, 40) for n in range(5)}
        await until(lambda: len(arrived) == sum(min(5, size) for size in sizes))
    assert max(sizes) > 1


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_of_a_batch_that_fails_in_part_the_rest_is_kept(kind: str, tmp_path: Path) -> None:
    app = app_on(kind, tmp_path, backoff=Backoff(attempts=1))

    @app.on(paid, batch=10, within="100ms", concurrency=1)
    async def book(payments: list[Payment], state: State) -> None:
        bad = {n: Reject("a debt") for n, payment in enumerate(payments) if payment.cents < 0}
        for n, payment in enumerate(payments):
            if n not in bad:
                state.put(balances, payment.account, Balance(payment.cents))
        if bad:
            raise Partial(bad)

    async with app:
        await app.publish_many([paid(Payment(f"a{n}", -1 if n == 3 else n)) for n in range(6)])
        await until(lambda: (app.stats()["shop.book"].dead, app.stats()["shop.book"].handled) == (1, 5))
        assert sorted(await kept(app, balances)) == ["a0", "a1", "a2", "a4", "a5"]


async def test_a_run_sees_what_it_wrote_and_removed(tmp_path: Path) -> None:
    app, seen = app_on("sqlite", tmp_path), list[Any]()

    @app.on(paid)
    async def book(payment: Payment, state: State) -> None:
        state.put(balances, "b", Balance(2))
        state.delete(balances, "c")
        state.put(balances, "other/x", Balance(9))
        seen.append(await state.get_many(balances, ["a", "b", "c", "d"]))
        seen.append(await state.scan(balances))
        seen.append(await state.scan(balances, "other/"))
        seen.append(await state.scan(balances, limit=2))

    async with app:

        async def before(state: State) -> None:
            for key in "abc":
                state.put(balances, key, Balance(1))

        await transact(app, before)
        await app.publish(paid, Payment("a", 1))
        await until(lambda: app.stats()["shop.book"].handled)
        assert seen == [
            {"a": Balance(1), "b": Balance(2)},
            {"a": Balance(1), "b": Balance(2), "other/x": Balance(9)},
            {"other/x": Balance(9)},
            {"a": Balance(1), "b": Balance(2)},
        ]
        assert await kept(app, balances) == seen[1]


async def test_what_was_written_since_a_savepoint_may_be_undone(tmp_path: Path) -> None:
    app = app_on("sqlite", tmp_path)

    @app.on(paid)
    async def book(payment: Payment, state: State) -> None:
        state.put(balances, "kept", Balance(1))
        undo = state.savepoint()
        state.put(balances, "kept", Balance(2))
        state.put(balances, "gone", Balance(3))
        undo()
        assert await state.get(balances, "gone") is None

    async with app:
        await app.publish(paid, Payment("a", 1))
        await until(lambda: app.stats()["shop.book"].handled)
        assert await kept(app, balances) == {"kept": Balance(1)}


async def test_what_is_due_is_found_with_what_is_on_its_way(tmp_path: Path) -> None:
    app, found = app_on("sqlite", tmp_path), list[list[str]]()

    @app.on(paid, concurrency=1)
    async def book(payment: Payment, state: State) -> None:
        state.put(balances, payment.account, Balance(), due=float(payment.cents))
        found.append(list(await state.due(balances, 5.0)))
        if len(found) == 30:
            state.delete(balances, "a3")
            state.put(balances, "a0", Balance(), due=9.0)
            found.append(list(await state.due(balances, 5.0)))
            found.append(list(await state.due(balances, 5.0, 2)))

    async with app:
        await app.publish_many([paid(Payment(f"a{n % 10}", n % 10)) for n in range(30)])
        await until(lambda: app.stats()["shop.book"].handled == 30)
    firsts = [f"a{n}" for n in range(6)]
    assert found[:30] == [firsts[: n + 1] for n in range(30)]
    assert found[30:] == [["a1", "a2", "a4", "a5"], ["a1", "a2"]]


async def test_a_dependency_may_take_the_state(tmp_path: Path) -> None:
    from typing import Annotated

    from tidings import Depends

    async def balance_of(message: Message[Payment], state: State) -> Balance:
        return await state.get(balances, message.data.account) or Balance(100)

    app = app_on("memory", tmp_path)

    @app.on(paid)
    async def book(payment: Payment, state: State, balance: Annotated[Balance, Depends(balance_of)]) -> None:
        state.put(balances, payment.account, add(balance, payment))

    async with app:
        await app.publish(paid, Payment("a", 1))
        await until(lambda: app.stats()["shop.book"].handled)
        assert await kept(app, balances) == {"a": Balance(101, 1)}


# -- beside a bus that keeps no records


async def test_a_message_that_comes_again_has_no_second_effect(tmp_path: Path) -> None:
    """The same id twice, as after a lost acknowledgement."""
    app = app_on("nats", tmp_path)

    @app.on(paid)
    async def book(payment: Payment, state: State) -> Message[Balance]:
        balance = add(await state.get(balances, payment.account), payment)
        state.put(balances, payment.account, balance)
        return receipts(balance)

    async with receiving(app, receipts) as arrived:
        first = paid(Payment("a", 5), id="one")
        await app.publish(first)
        await until(lambda: arrived)
        await store_of(app).commit([Unit([Write("_inbox", "shop.book/two", b"", None, 1e12, new_version())])])
        await app.publish(paid(Payment("a", 7), id="two"))  # handled before, says the inbox
        await app.publish(paid(Payment("a", 9), id="three"))
        await until(lambda: app.stats()["shop.book"].handled == 3 and len(arrived) == 2)
        assert await kept(app, balances) == {"a": Balance(14, 2)}
        assert [message.data for message in arrived] == [Balance(5, 1), Balance(14, 2)]


async def test_what_is_relayed_keeps_its_id_key_headers_and_order(tmp_path: Path) -> None:
    app = app_on("redis", tmp_path)

    @app.on(paid, concurrency=1)
    async def book(payment: Payment, state: State) -> list[Message[Balance]]:
        state.put(balances, payment.account, Balance())
        return [receipts(Balance(n), key=payment.account, headers={"n": str(n)}, id=f"r{n}") for n in range(100)]

    async with receiving(app, receipts) as arrived:
        await app.publish(paid, Payment("a", 1))
        await until(lambda: len(arrived) == 100)
    assert [(m.data.cents, m.key, m.header("n"), m.id) for m in arrived] == [
        (n, "a", str(n), f"r{n}") for n in range(100)
    ]
    assert {message.source for message in arrived} == {"shop"}


async def test_an_app_without_a_store_is_refused_at_its_line(tmp_path: Path) -> None:
    app = App("shop", engine_bus("redis").options(2.0))

    @app.on(paid)
    async def book(payment: Payment, state: State) -> None: ...

    with pytest.raises(Unsupported, match="keeps records") as told:
        async with app:
            pass
    assert "test_handlers.py:" in str(told.value)
    assert "state=" in str(told.value)


# -- what is refused


def test_a_state_needs_an_async_handler_with_a_group() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidHandler, match="async def"):

        @app.on(paid)
        def book(payment: Payment, state: State) -> None: ...

    with pytest.raises(InvalidHandler, match="without live"):

        @app.on(paid, live=True)
        async def watch(payment: Payment, state: State) -> None: ...


def test_names_types_and_keys_are_checked() -> None:
    with pytest.raises(InvalidName):
        Table("no good", Balance)
    with pytest.raises(InvalidHandler):
        Table("t", object())  # type: ignore[call-overload, unused-ignore]
    with pytest.raises(PayloadRefused):
        Table("t", bytes).encode("text")  # type: ignore[arg-type, unused-ignore]
    state = State(None, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        state.put(balances, "a\0b", Balance())


async def test_transact_runs_again_when_its_record_was_changed(tmp_path: Path) -> None:
    app, runs = app_on("sqlite", tmp_path), 0
    async with app.connect():

        async def change(state: State) -> None:
            nonlocal runs
            runs += 1
            balance = await state.get(balances, "a") or Balance()
            if runs == 1:
                await app.bus().commit([Unit([Write("balances", "a", b'{"cents":10,"payments":0}', None, None, 7)])])  # type: ignore[attr-defined]
            state.put(balances, "a", Balance(balance.cents + 1))

        await transact(app, change)
        assert runs == 2
        assert await kept(app, balances) == {"a": Balance(11)}


async def test_transact_publishes_what_it_returns_or_nothing(tmp_path: Path) -> None:
    app = app_on("sqlite", tmp_path)
    async with receiving(app, receipts) as arrived:

        async def change(state: State) -> list[Message[Balance]]:
            state.put(balances, "a", Balance(1))
            return [receipts(Balance(1)), receipts(Balance(2))]

        async def fail(state: State) -> Message[Balance]:
            state.put(balances, "a", Balance(2))
            raise KeyError("x")

        await transact(app, change)
        with pytest.raises(KeyError):
            await transact(app, fail)
        await until(lambda: len(arrived) == 2)
        assert await kept(app, balances) == {"a": Balance(1)}
