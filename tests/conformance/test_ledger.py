"""The ledger sees what it is there to see."""

from __future__ import annotations

import pytest

from tidings import Message
from tidings.testing.conformance import Ledger


def message(n: int, key: str | None = None) -> Message[object]:
    return Message("a.b", id=f"m{n}", key=key)


def test_lost_alien_and_repeated() -> None:
    ledger = Ledger()
    ledger.accept([message(1), message(2)])
    ledger.end("g", message(1))
    with pytest.raises(AssertionError, match="1 of 2 accepted messages were never handled: m2"):
        ledger.check("g")
    ledger.end("g", message(2))
    assert ledger.complete("g")
    ledger.check("g")
    ledger.end("g", message(2))
    ledger.check("g", duplicates=1)
    with pytest.raises(AssertionError, match="1 duplicates"):
        ledger.check("g")
    ledger.end("g", message(3))
    with pytest.raises(AssertionError, match="nobody published"):
        ledger.check("g", duplicates=1)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ("b1 b2 e1 e2 b3 e3 b4 e4", ""),
        ("b1 e1 b2 e2 b3 e3 b4 e4", "never were two keys"),
        ("b1 b2 b3 e1 e2 e3 b4 e4", "while m1 was in flight"),
        ("b3 b2 e3 e2 b1 e1 b4 e4", "message 0 came after message 2"),
        ("b1 b2 f1 b1 e1 e2 b3 e3 b4 e4", ""),
    ],
)
def test_order(steps: str, complaint: str) -> None:
    ledger = Ledger()
    messages = {n: message(n, "odd" if n % 2 else "even") for n in range(1, 5)}
    ledger.accept(messages.values())
    for step in steps.split():
        {"b": ledger.begin, "e": ledger.end, "f": ledger.fail}[step[0]]("g", messages[int(step[1])])
    if complaint:
        with pytest.raises(AssertionError, match=complaint):
            ledger.check_order("g")
    else:
        ledger.check_order("g")
        with pytest.raises(AssertionError, match="only 1 of 2 members"):
            ledger.check_order("g", members=2)
