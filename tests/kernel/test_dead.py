"""Dead letters carry everything, and stay small."""

from __future__ import annotations

from typing import Any

import pytest

from tidings import Delivery, Message
from tidings.kernel.bus import MARGIN
from tidings.kernel.dead import dead_letter
from tidings.kernel.transport import Session


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def letter(error: BaseException | None, **fields: Any) -> Message[Any]:
    message: Message[Any] = Message("orders.placed", body=b"x", id="m", key="k", **fields)
    return dead_letter(Delivery(message, Session(), None, 2, 1), "shop.bill", "failed", error, 1234.5678, 3)


def size(message: Message[Any]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in message.headers or ())


def test_it_keeps_the_message_and_says_what_happened() -> None:
    fields = {"type": "orders", "source": "web", "correlation_id": "c", "causation_id": "p", "time": 7.0}
    dead = letter(raised(ValueError("bad")), headers=(("a", "1"),), content_type="text/plain", **fields)
    assert (dead.topic, dead.body, dead.id, dead.key, dead.address) == (
        "orders.placed",
        b"x",
        "m",
        "k",
        "_dead.shop.bill",
    )
    assert (dead.type, dead.source, dead.correlation_id, dead.causation_id, dead.time) == tuple(fields.values())
    assert dead.content_type == "text/plain"
    told = dict(dead.headers or ())
    host, trace, detail = told.pop("tdghost"), told.pop("tdgtraceback"), told.pop("tdgdetail")
    assert host
    assert detail.endswith("bad")
    assert trace.endswith("ValueError: bad\n")
    assert told == {
        "a": "1",
        "tdggroup": "shop.bill",
        "tdgreason": "failed",
        "tdgfailures": "3",
        "tdgcrashes": "1",
        "tdgdeadat": "1234.568",
        "tdgerror": "ValueError",
    }


def test_what_would_stop_it_from_arriving_is_taken_off() -> None:
    dead = letter(None, deliver_at=9e9, expires_at=1.0, priority=9, reply_to="_reply.x")
    assert (dead.deliver_at, dead.expires_at, dead.priority, dead.reply_to) == (None, None, 0, None)
    assert dead.header("tdgerror") == ""


@pytest.mark.parametrize("text", ["x" * 10**6, "☃" * 10**5, "\ud800" * 5000, "a\ud800b", "\n" * 9999])
def test_big_and_odd_texts_are_cut(text: str) -> None:
    dead = letter(raised(ValueError(text)))
    assert len(dead.header("tdgtraceback").encode()) <= 4096
    assert len(dead.header("tdgdetail").encode()) <= 1024
    assert size(dead) < MARGIN


def test_a_cut_traceback_keeps_its_end() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError(f"level {n}")

    error: BaseException = ValueError()
    try:
        deep(300)
    except ValueError as caught:
        error = caught
    for n in range(50):
        wrapper = raised(RuntimeError(f"wrapped {n} " + "y" * 100))
        wrapper.__cause__ = error
        error = wrapper
    trace = letter(error).header("tdgtraceback")
    assert len(trace.encode()) <= 4096
    assert trace.rstrip().endswith("wrapped 49 " + "y" * 100)


@pytest.mark.parametrize("error", [Unprintable(), ExceptionGroup("many", [ValueError("a"), KeyError("b")])], ids=repr)
def test_any_exception_will_do(error: BaseException) -> None:
    dead = letter(raised(error))
    assert dead.header("tdgerror") == type(error).__qualname__
    assert size(dead) < MARGIN


def test_a_second_death_tells_of_the_second() -> None:
    """A letter that was replayed and failed again has one set of our headers."""
    first = letter(raised(ValueError("one")), headers=(("a", "1"),))
    again = dead_letter(Delivery(first, Session()), "shop.bill", "expired", None, 99.0, 0)
    told = dict(again.headers or ())
    assert (told["tdgreason"], told["a"]) == ("expired", "1")
    assert "tdgerror" not in told, "the first death's error is not the second's"
