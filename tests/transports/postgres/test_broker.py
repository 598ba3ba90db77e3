"""The server goes away: killed, cut off, absent, moved; and answers that were lost on their way."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from tests.servers import fresh
from tests.transports.consuming import nothing, settle, take, until
from tests.transports.postgres.helpers import STORE, bus, group, message, raw

from tidings.kernel.errors import BusError, BusUnavailable, InvalidURL
from tidings.kernel.transport import Event, Retry, Settlement
from tidings.testing.faults import Proxy
from tidings.transports.postgres import Postgres, writer
from tidings.transports.postgres.connections import Unanswered

CLIENTS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"


def of(told: list[Event], kind: str) -> list[Event]:
    return [event for event in told if event.kind == kind]


async def test_a_restart_costs_no_lease() -> None:
    """Nor what was handed out: everybody comes back within its lease."""
    told: list[Event] = []
    with fresh("postgres") as mine:
        place = f"{mine.url}?namespace=t"
        async with bus(place, told, lease="6s") as end, bus(place, lease="6s") as other:
            consumer, rival = await end.subscribe(group()), await other.subscribe(group())
            await end.publish([message(n) for n in range(3)])
            held = await take(consumer, 3)
            await asyncio.to_thread(mine.stop)
            await asyncio.sleep(3)  # older than a heartbeat, younger than the lease
            await asyncio.to_thread(mine.start)
            waiting = asyncio.ensure_future(rival.receive(1))
            for _ in range(8):
                await consumer.extend(held)
                assert not (await asyncio.wait({waiting}, timeout=0.5))[0]
            assert all(delivery.session.alive for delivery in held)
            await settle(consumer, held)
            rival.stop()
            assert not await waiting
    assert not of(told, "fenced")


GHOST = """INSERT INTO member(about, lease, beat, present, missed) VALUES ('ghost', 60, unix(), true, unix() - 10)"""


async def test_whose_connection_has_ended_is_buried(place: str) -> None:
    """Long before its lease."""
    async with bus(place), raw(place) as con:
        await con.execute(GHOST)
        for _ in range(80):  # the server may have started just now
            if await con.fetchval("SELECT count(*) FROM member") == 1:
                return
            await asyncio.sleep(0.1)
        pytest.fail("still there after 8 s, its lease is a minute")


async def test_after_a_start_all_are_on_the_way_back() -> None:
    with fresh("postgres") as mine:
        place = f"{mine.url}?namespace=t"
        async with bus(place), raw(place) as con:
            await con.execute(GHOST)
            await asyncio.sleep(1.2)
            assert await con.fetchval("SELECT count(*) FROM member WHERE about = 'ghost'")
            await asyncio.sleep(5)
            assert not await con.fetchval("SELECT count(*) FROM member WHERE about = 'ghost'")


async def test_cut_off_for_longer_than_a_lease(place: str) -> None:
    """What it held goes to others, it learns so, its late settlements do nothing; healed, it goes on."""
    told: list[Event] = []
    at = urlsplit(place)
    async with Proxy(at.hostname or "", at.port or 0) as proxy:
        far = place.replace(f"{at.hostname}:{at.port}", proxy.address)
        async with bus(far, told, lease="1s") as end:
            consumer = await end.subscribe(group())
            async with bus(place, lease="1s") as other:
                await other.publish([message(1)])
                (held,) = await take(consumer, 1)
                proxy.partition()
                rival = await other.subscribe(group())
                (again,) = await take(rival, 1)
                assert (again.suspect, again.crashes, again.failures) == (True, 0, 0)
                await until(lambda: not held.session.alive, within=3)
                proxy.heal()
                (failure,) = await settled(consumer, [Settlement(held)])
                assert failure.kind == "fenced"
                await settle(rival, [again])
                await rival.close()
                await other.publish([message(2)])
                await settle(consumer, await take(consumer, 1, within=30))
    assert of(told, "fenced")


async def settled(consumer: Any, done: list[Settlement]) -> Any:
    """As the kernel does: again, for as long as the bus cannot."""
    while True:
        try:
            return await consumer.settle(done)
        except BusError:
            await asyncio.sleep(0.2)


async def test_connections_are_cut(place: str) -> None:
    """All of them, its presence too: the process is alive, and loses nothing."""
    told: list[Event] = []
    name = place.partition("namespace=")[2]
    async with bus(f"{place}&application_name={name}", told) as end, raw(place) as con:
        consumer = await end.subscribe(group())
        await end.publish([message(n) for n in range(3)])
        held = await take(consumer, 3)
        for _ in range(3):
            cut = await con.fetch(f"SELECT pg_terminate_backend(pid) {CLIENTS} AND application_name = '{name}'")
            assert len(cut) > 1
            await asyncio.sleep(1.2)
        assert not await end.publish([message(3)])
        assert all(delivery.session.alive for delivery in held)
        await settle(consumer, held)
        await settle(consumer, await take(consumer, 1))
        assert await con.fetchval("SELECT present AND missed IS NULL FROM member")
    assert not of(told, "fenced") + of(told, "recovered")


async def test_publishing_waits_and_then_says_so() -> None:
    with fresh("postgres") as mine:
        async with bus(f"{mine.url}?namespace=t", publish_wait="2s") as end:
            await asyncio.to_thread(mine.stop)
            waiting = asyncio.ensure_future(end.publish([message(1)]))
            (failure,) = await asyncio.wait_for(waiting, 10)
            assert isinstance(failure.error, BusUnavailable)
            waiting = asyncio.ensure_future(end.publish([message(2)]))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(mine.start)
            assert not await asyncio.wait_for(waiting, 10)


async def test_nobody_is_there() -> None:
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        await asyncio.wait_for(Postgres.from_url("postgresql://u:secret@127.0.0.1:1/x").transport().open(print), 5)


async def test_there_is_no_such_database(place: str) -> None:
    with pytest.raises(BusUnavailable, match="no such database"):
        await Postgres.from_url(place.replace("/postgres?", "/nowhere?")).transport().open(print)


async def test_a_wrong_password() -> None:
    with fresh("postgres", password="sesame") as mine:
        base = urlsplit(mine.url)
        for password, right in (("wrong", False), ("sesame", True)):
            url = f"postgresql://postgres:{password}@127.0.0.1:{base.port}/postgres?namespace=t"
            transport = Postgres.from_url(url).transport()
            if right:
                await transport.open(lambda event: None)
                await transport.close()
            else:
                with pytest.raises(BusUnavailable, match="refused the login") as refused:
                    await transport.open(print)
                assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://h/db?namespaces=x", "did you mean 'namespace'"),
        ("postgresql://h/db?namespace=Big", "namespace cannot be"),
        ("postgresql://h/db?namespace=a;drop", "namespace cannot be"),
        ("postgresql://h/db?namespace=pg_x", "namespace cannot be"),
        ("postgresql://h/db?lease=0s", "lease"),
        ("postgresql://h/db?lease=soon", "lease"),
        ("postgresql://h/db?connections=1", "connections"),
        ("postgresql://h/db?synchronous_commit=maybe", "maybe"),
        ("postgresql://h:99999/db", "no host and port"),
        ("mysql://h/db", "no PostgreSQL URL"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(InvalidURL, match=says):
        Postgres.from_url(url)


def test_urls() -> None:
    options = Postgres.from_url("postgres://u:p%40@a:1,b:2/db?sslmode=require&namespace=shop&lease=5s&connections=8")
    assert options.dsn == "postgres://u:p%40@a:1,b:2/db?sslmode=require"
    assert (options.namespace, options.lease_seconds, options.connections) == ("shop", 5.0, 8)
    assert options.shown() == "postgres://u@a:1,b:2/db (shop)"


async def test_the_next_of_several_hosts(place: str) -> None:
    at = urlsplit(place)
    async with bus(place.replace(f"{at.hostname}:", f"127.0.0.1:1,{at.hostname}:")) as end:
        assert not await end.publish([message()])


async def test_the_answer_to_a_claim_is_lost(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handed out comes again at once, uncounted."""
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        await end.publish([message(n) for n in range(5)])
        (first,) = await take(consumer, 1, limit=1)
        assert not await consumer.settle([Settlement(first, Retry(0.0, 3))])
        lose(monkeypatch, end, "claim")
        came = await take(consumer, 5, within=5)
        assert sorted((d.message.id, d.failures, d.suspect) for d in came) == [
            ("m0", 3, False), *((f"m{n}", 0, False) for n in range(1, 5))
        ]  # fmt: skip
        await settle(consumer, came)
        await nothing(consumer)


async def test_a_claim_is_cut_off_and_nothing_else_comes(place: str) -> None:
    """What woke the consumer came only once: it tries again by itself."""
    claiming = f"{CLIENTS} AND query LIKE '%.claim(%' AND wait_event_type = 'Lock'"
    async with bus(place) as end, bus(place) as other, raw(place) as con:
        consumer = await end.subscribe(group())
        waiting = asyncio.ensure_future(take(consumer, 1))
        await until(lambda: not consumer.more and consumer.future is not None)  # at the end of the log, and asleep
        await con.execute(f"SELECT pg_advisory_lock('grp'::regclass::oid::int, {consumer.group})")
        await other.publish([message(1)])
        for _ in range(1000):
            if await con.fetch(f"SELECT pg_terminate_backend(pid) {claiming}"):
                break
            await asyncio.sleep(0.01)
        await con.execute("SELECT pg_advisory_unlock_all()")
        await settle(consumer, await waiting)


async def test_the_answer_to_a_settlement_is_lost(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, and neither its output nor its input is there twice."""
    async with bus(place) as end:
        consumer, out = await end.subscribe(group()), await end.subscribe(group("billing.>", "shop.mail"))
        await end.publish([message(n) for n in range(2)])
        held = await take(consumer, 2)
        lose(monkeypatch, end, "apply")
        done = [Settlement(held[0], outgoing=(message(9, "billing.sent"),)), Settlement(held[1])]
        with pytest.raises(Unanswered):
            await consumer.settle(done)
        assert {failure.kind for failure in await consumer.settle(done)} == {"fenced"}, "it was done the first time"
        await settle(out, await take(out, 1))
        await nothing(out)
        await nothing(consumer)


async def test_the_answer_to_a_settlement_of_a_part_is_lost(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again, it has no second output, although the rest of its claim is still there; that comes again."""
    async with bus(place) as end:
        consumer, out = await end.subscribe(group()), await end.subscribe(group("billing.>", "shop.mail"))
        await end.publish([message(n) for n in range(4)])
        held = await take(consumer, 4)
        assert not await consumer.settle([Settlement(held[0], outgoing=(message(8, "billing.sent"),))])
        lose(monkeypatch, end, "apply")
        done = [Settlement(held[1], outgoing=(message(9, "billing.sent"),))]
        with pytest.raises(Unanswered):
            await consumer.settle(done)
        assert [failure.kind for failure in await consumer.settle(done)] == ["fenced"], "it was done the first time"
        assert [d.message.id for d in await take(out, 2)] == ["m8", "m9"]
        await nothing(out)
        again = await take(consumer, 2)
        assert sorted(d.message.id for d in again) == ["m2", "m3"]
        await settle(consumer, again)
        await nothing(consumer)


@pytest.mark.parametrize("rest", ["claim", "parked"])
async def test_acknowledgements_were_lost_with_the_server(place: str, rest: str) -> None:
    """They are committed asynchronously: what comes up again in the hands of one who let it go is given back."""
    async with bus(place, lease="1s") as end, raw(place) as con:
        consumer = await end.subscribe(group())
        await end.publish([message(1)])
        held = await take(consumer, 1)
        if rest == "parked":
            assert not await consumer.settle([Settlement(held[0], Retry(0.0, 1))])
            held = await take(consumer, 1)
        await con.execute(f"CREATE TEMP TABLE before AS SELECT * FROM {rest}")
        waiting = asyncio.ensure_future(take(consumer, 1))
        await settle(consumer, held)
        await con.execute(f"INSERT INTO {rest} SELECT * FROM before")
        (again,) = await waiting
        assert (again.message.id, again.suspect, again.crashes) == ("m1", False, 0)
        await settle(consumer, [again])
        await nothing(consumer)


async def test_numbers_were_lost_with_the_server(place: str) -> None:
    """What was moved into the log is committed asynchronously, too: its numbers are given to other messages."""
    async with bus(place) as end, bus(place) as other, raw(place) as con:
        consumer = await end.subscribe(group())
        await other.publish([message(n) for n in range(5)])
        await settle(consumer, await take(consumer, 5))
        await until(lambda: end.seen == 5)
        waiting = asyncio.ensure_future(take(consumer, 1))
        await until(lambda: not consumer.more and consumer.future is not None)
        await con.execute("DELETE FROM log WHERE seq > 2; UPDATE cursor SET seq = 2; SELECT setval('seq', 2)")
        await until(lambda: end.seen == 2)
        await other.publish([message(9)])
        (delivery,) = await waiting
        assert delivery.message.id == "m9"
        await settle(consumer, [delivery])


async def test_a_settlement_that_never_arrived_is_undone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bus(place) as end:
        consumer = await end.subscribe(group())
        await end.publish([message(n) for n in range(3)])
        held = await take(consumer, 3)
        lose(monkeypatch, end, "apply", done=False)
        with pytest.raises(Unanswered):
            await consumer.settle([Settlement(held[0]), Settlement(held[1], Retry(0.0, 1))])
        assert not await consumer.settle([Settlement(held[0]), Settlement(held[1], Retry(0.0, 1)), Settlement(held[2])])
        (again,) = await take(consumer, 1)
        assert (again.message.id, again.failures) == ("m1", 1)


async def test_the_answer_to_a_publish_is_lost(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bus(place) as end:
        lose(monkeypatch, end, "apply")
        assert [failure.kind for failure in await end.publish([message(1), message(2)])] == ["unknown"] * 2
        assert not await end.publish([message(3)])


def lose(monkeypatch: pytest.MonkeyPatch, end: Any, function: str, done: bool = True) -> None:
    """The answer to the next call of a function; or the call itself."""
    call, lost = end.connections.call, False

    async def losing(query: str, *args: Any, **more: Any) -> Any:
        nonlocal lost
        if f".{function}(" in query and not lost:
            lost = True
            if done:
                await call(query, *args, **more)
            raise Unanswered("lost")
        return await call(query, *args, **more)

    monkeypatch.setattr(end.connections, "call", losing)


async def test_who_holds_the_log_is_told(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a stranger's own transaction can; it is named, and nothing is skipped."""
    monkeypatch.setattr(writer, "STUCK", 1.2)
    told: list[Event] = []
    async with bus(place, told) as end, raw(place) as con:
        consumer = await end.subscribe(group())
        await end.publish([message(1)])
        await settle(consumer, await take(consumer, 1))
        channel = await con.fetchval("SELECT id FROM channel")
        record = await con.fetchval("SELECT record FROM log")
        transaction = con.transaction()
        await transaction.start()
        await con.execute(STORE, channel, record, 1)
        waiting = asyncio.ensure_future(end.publish([message(2)]))
        await until(lambda: any("holds the log" in event.detail for event in told), within=10)
        assert not waiting.done()
        assert str(await con.fetchval("SELECT pg_backend_pid()")) in of(told, "lost")[-1].detail
        await transaction.commit()
        assert not await waiting
        came = await take(consumer, 2)
        assert [delivery.message.id for delivery in came] == ["m1", "m2"], "in the order of numbers, none skipped"


async def test_over_tls() -> None:
    with fresh("postgres", tls=True) as mine:
        ca = mine.tls / "ca.pem" if mine.tls else None
        async with (
            bus(f"{mine.url}?namespace=t&sslmode=verify-ca&sslrootcert={ca}") as end,
            raw(f"{mine.url}?namespace=t") as con,
        ):
            assert not await end.publish([message()])
            query = f"SELECT bool_and(s.ssl) {CLIENTS.replace('WHERE', 'JOIN pg_stat_ssl s USING (pid) WHERE')}"
            assert await con.fetchval(query)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("topics", [1, 3, 70])
async def test_large_messages_among_small_ones_come_in_order(place: str, ordered: bool, topics: int) -> None:
    """A claim has a limit in bytes, too: fewer at a time, and none left out."""
    sizes = {20: 100_000, 21: 5_000_000, 22: 300, 140: 700_000}
    async with bus(place) as transport:
        consumer = await transport.subscribe(group("orders.>" if topics > 1 else "orders.t0", ordered=ordered))
        published = [
            replace(message(n, f"orders.t{n % topics}"), body=b"%d" % n + b" " * sizes.get(n, 0)) for n in range(160)
        ]
        assert not await transport.publish(published)
        came = await take(consumer, 160, 512)
        assert [d.message.id for d in came] == [m.id for m in published]
        assert [len(d.message.body) for d in came] == [len(m.body) for m in published]
        await settle(consumer, came)


async def test_large_messages_do_not_let_others_pass_that_have_less_priority(place: str) -> None:
    async with bus(place) as transport:
        consumer = await transport.subscribe(group())
        high = [replace(message(n, priority=9), body=b" " * 600_000) for n in range(80)]
        assert not await transport.publish([message(n) for n in range(100, 110)])
        assert not await transport.publish(high)
        came = await take(consumer, 90, 512)
        assert [d.message.priority for d in came] == [9] * 80 + [0] * 10
