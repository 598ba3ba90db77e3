"""Envelope Wrapper: nothing leaves in the open, nothing gets past, and handlers notice neither."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Topic
from tidings.kernel.errors import InvalidName, InvalidOption, Undecodable
from tidings.kernel.transport import Inspectable
from tidings.middleware import instrument
from tidings.patterns import ClaimCheck, EnvelopeWrapper, FolderBlobs, compressed, encrypted, signed


class Payment(Struct):
    card: str
    cents: int


payments = Topic("payments.made", Payment)
booked = Topic("payments.booked", Payment)
receipts = Topic("receipts.printed", Payment)
PAID = Payment("5500-0000-0000-0004", 1999)

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
PAIRS: dict[str, Callable[..., EnvelopeWrapper]] = {
    "aes-gcm": lambda **more: encrypted({"new": NEW, "old": OLD}, topics="payments.>", **more),
    "hmac-sha256": lambda **more: signed({"new": NEW, "old": OLD}, topics="payments.>", **more),
    "zlib": lambda **more: compressed(topics="payments.>", **more),
}

each_pair = pytest.mark.parametrize("name", PAIRS)
each_bus = pytest.mark.parametrize("scheme", ["memory", "sqlite"])


def url(scheme: str, folder: Path) -> str:
    return "memory://" if scheme == "memory" else f"sqlite:///{folder / 'bus.db'}"


async def stored(app: App, pattern: str) -> list[Message[Any]]:
    bus = app.bus()
    assert isinstance(bus, Inspectable)
    return [found.message for found in await bus.peek(pattern)]


async def dead(app: App, group: str) -> Message[Any]:
    """The first dead letter of a group, once it is there."""
    async with asyncio.timeout(20):
        while not (letters := await stored(app, f"_dead.{group}")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return letters[0]


def sealed(body: bytes = b"body", topic: str = "payments.made", **more: Any) -> Message[Any]:
    return Message(topic, body, "m1", **more)


@each_bus
@each_pair
async def test_what_travels_is_wrapped_and_handlers_see_what_was_in_it(name: str, scheme: str, tmp_path: Path) -> None:
    app = App("bank", url(scheme, tmp_path))
    came: list[Message[Payment]] = []

    @app.on(payments)
    async def book(payment: Payment) -> list[Message[Payment]]:
        return [booked(payment, headers={"branch": "Rome"}), receipts(payment)]

    @app.on(booked, batch=10)
    async def audit(messages: list[Message[Payment]]) -> None:
        came.extend(messages)

    instrument(app, PAIRS[name]())
    async with app:
        await app.publish(payments, PAID)
        await app.publish_many([payments(PAID)])
        await until(lambda: len(came) == 2)
        wrapped, plain = await stored(app, "payments.>"), await stored(app, "receipts.>")
    assert [(message.data, message.headers) for message in came] == [(PAID, (("branch", "Rome"),))] * 2
    body = msgspec.json.encode(PAID)
    assert all(message.body != body for message in wrapped)
    assert all(message.header("envelope").partition("/")[0] == name for message in wrapped)
    assert len({message.id for message in wrapped}) == 4
    assert [(message.body, message.header("envelope")) for message in plain] == [(body, "")] * 2


@given(st.binary(max_size=100_000))
def test_whatever_is_wrapped_comes_out_again(body: bytes) -> None:
    async def check() -> None:
        for make in PAIRS.values():
            pair = make()
            wrapped = await pair.outgoing(sealed(body))
            assert (await pair.incoming(wrapped)) == sealed(body)

    asyncio.run(check())


@each_pair
async def test_what_comes_unwrapped_is_refused_and_kept(name: str) -> None:
    app = App("bank", "memory://")

    @app.on(payments, middleware=[PAIRS[name](required=True)])
    async def book(payment: Payment) -> None: ...

    async with app:
        await app.publish(payments, PAID)
        letter = await dead(app, "bank.book")
    assert letter.header("tdgreason") == "undecodable"
    assert f"in no {name} envelope that can be opened" in letter.header("tdgdetail")
    assert msgspec.json.decode(letter.body, type=Payment) == PAID


@each_pair
async def test_while_publishers_are_brought_over_both_come(name: str) -> None:
    pair = PAIRS[name](required=False)
    assert await pair.incoming(sealed()) == sealed()
    assert await pair.incoming(await pair.outgoing(sealed())) == sealed()
    with pytest.raises(Undecodable):
        await pair.incoming(sealed(b"\0forged", headers=(("envelope", f"{name}/new"),)))


@pytest.mark.parametrize("name", ["aes-gcm", "hmac-sha256"])
async def test_it_is_bound_to_its_message(name: str) -> None:
    pair = PAIRS[name]()
    wrapped = await pair.outgoing(sealed(b'{"card":"1","cents":1}'))
    changes: list[dict[str, Any]] = [
        {"topic": "payments.booked"},
        {"id": "m2"},
        {"content_type": "text/plain"},
        {"body": wrapped.body[:-1]},
        {"body": b""},
        *({"body": bytes([*wrapped.body[:at], wrapped.body[at] ^ 1, *wrapped.body[at + 1 :]])} for at in (0, 20, -1)),
        {"headers": (("envelope", f"{name}/old"),)},
        {"headers": (("envelope", f"{name}/unknown"),)},
        {"headers": (("envelope", name),)},
        {"headers": (("envelope", f"{name}/new,zlib"),)},
        {"headers": None},
    ]
    for change in changes:
        with pytest.raises(Undecodable):
            await pair.incoming(replace(wrapped, **change))
    assert (await pair.incoming(replace(wrapped, key="other", priority=3))).body == b'{"card":"1","cents":1}'


@pytest.mark.parametrize("make", [encrypted, signed])
async def test_keys_rotate(make: Any) -> None:
    before = make({"old": OLD}, topics="payments.>")
    ready = make({"old": OLD, "new": NEW}, topics="payments.>")
    after = make({"new": NEW, "old": OLD}, topics="payments.>")
    last = make({"new": NEW}, topics="payments.>")
    old, new = await before.outgoing(sealed()), await after.outgoing(sealed())
    assert (old.header("envelope")[-3:], new.header("envelope")[-3:]) == ("old", "new")
    for pair in (ready, after):
        assert await pair.incoming(old) == await pair.incoming(new) == sealed()
    with pytest.raises(Undecodable, match="KeyError: 'old'"):
        await last.incoming(old)


async def test_two_of_the_same_look_different() -> None:
    vault = PAIRS["aes-gcm"]()
    assert (await vault.outgoing(sealed())).body != (await vault.outgoing(sealed())).body
    assert b"body" not in (await vault.outgoing(sealed())).body


@each_pair
async def test_wrapping_twice_changes_nothing_but_a_header_alone_does_not_count(name: str) -> None:
    pair = PAIRS[name]()
    once = await pair.wrap(payments(PAID))
    assert once.id
    assert await pair.wrap(once) is once
    copied = await pair.wrap(payments(PAID, headers={"envelope": f"{name}/new"}))
    assert copied.body != msgspec.json.encode(PAID)


async def test_wrappers_nest_and_a_claim_check_stands_around_them(tmp_path: Path) -> None:
    app, claims = App("bank", "memory://"), ClaimCheck(FolderBlobs(tmp_path), above=500)
    squeeze = compressed(topics="payments.>", required=True)
    came: list[Payment] = []
    large = Payment("x" * 100_000, 1)
    noise = Payment("".join(str(hash(str(n))) for n in range(500)), 2)

    @app.on(payments, to=booked)
    async def book(payment: Payment) -> Payment:
        return payment

    @app.on(booked)
    async def audit(payment: Payment) -> None:
        came.append(payment)

    instrument(app, claims, PAIRS["aes-gcm"](), squeeze)
    async with app:
        await app.publish(payments, large)
        await app.publish(payments, noise)
        await until(lambda: len(came) == 2)
        sent = await stored(app, "payments.>")
    assert sorted(came, key=lambda payment: payment.cents) == [large, noise]
    assert {message.header("envelope") for message in sent} == {"zlib,aes-gcm/new"}
    assert sorted(bool(message.header("claim-check")) for message in sent) == [False, False, True, True]


async def test_requests_and_replies_travel_as_they_are() -> None:
    app = App("bank", "memory://")

    @app.answer("payments.check")
    async def check(payment: Payment) -> int:
        return payment.cents

    instrument(app, PAIRS["aes-gcm"]())
    async with app:
        assert await app.request("payments.check", PAID, int) == 1999


async def test_retries_and_dead_letters_stay_wrapped(tmp_path: Path) -> None:
    app, vault = App("bank", url("sqlite", tmp_path), backoff=Backoff(attempts=2, first=0.001)), PAIRS["aes-gcm"]()
    seen: list[Payment] = []

    @app.on(payments, middleware=[vault])
    async def book(payment: Payment) -> None:
        seen.append(payment)
        raise ConnectionError

    @app.on("_dead.bank.book", middleware=[vault], group="bank.look", start="first")
    async def look(payment: Payment) -> None:
        seen.append(payment)

    async with app:
        await app.publish(await vault.wrap(payments(PAID)))
        letter = await dead(app, "bank.book")
        await until(lambda: len(seen) == 3)
    assert seen == [PAID] * 3
    assert PAID.card.encode() not in letter.body


async def test_a_bomb_does_not_go_off() -> None:
    squeeze = compressed(topics="payments.>", limit=1000)
    for body in (zlib.compress(bytes(1001)), zlib.compress(bytes(10**8)), zlib.compress(bytes(999))[:-1]):
        with pytest.raises(Undecodable, match=r"ValueError: it is cut off, or has more than 1,000 bytes"):
            await squeeze.incoming(sealed(body, headers=(("envelope", "zlib"),)))
    whole = sealed(zlib.compress(bytes(1000)), headers=(("envelope", "zlib"),))
    assert (await squeeze.incoming(whole)).body == bytes(1000)


async def test_a_pair_of_ones_own() -> None:
    def wrap(body: bytes, bound: bytes) -> tuple[bytes, str]:
        return body[::-1], "note, with / and ü"

    def unwrap(body: bytes, bound: bytes, note: str) -> bytes:
        assert note == "note, with / and ü"
        return body[::-1]

    mirror = EnvelopeWrapper("mirror", wrap, unwrap, topics="payments.>")
    wrapped = await mirror.outgoing(sealed(b"abc"))
    assert wrapped.body == b"cba"
    assert await mirror.incoming(wrapped) == sealed(b"abc")


def test_what_means_nothing_is_refused() -> None:
    for keys in ({}, {"a": b"short"}, {"": NEW}, {"a/b": NEW}, {"a": "text" * 8}):
        for make in (encrypted, signed):
            with pytest.raises(InvalidOption):
                make(keys, topics="payments.>")  # type: ignore[arg-type]
    with pytest.raises(InvalidName):
        encrypted({"a": NEW}, topics="payments..made")
    with pytest.raises(InvalidName):
        encrypted({"a": NEW}, topics="_dead.>")
    with pytest.raises(InvalidOption, match="an envelope cannot be called 'a,b'"):
        EnvelopeWrapper("a,b", lambda body, bound: (body, ""), lambda body, bound, note: body, topics="a")


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    lines = "import sys", "sys.modules['cryptography'] = None", "from tidings.patterns import encrypted"
    script.write_text("\n".join([*lines, "encrypted({'a': bytes(32)}, topics='payments.>')"]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "MissingExtra: TDG-E007" in done.stderr
    assert "mend:  pip install 'tidings[crypto]'" in done.stderr
