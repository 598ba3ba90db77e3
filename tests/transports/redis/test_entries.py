"""Entries are read by what they have in common with the one before: as if each were read alone."""

from __future__ import annotations

from typing import Any

import pytest

from tidings.kernel.message import Message
from tidings.transports.redis.entries import _any_message, fields, messages

AT = 1764170249.1234567


def entry(**changed: Any) -> list[bytes]:
    given: dict[str, Any] = {"body": b"{}", "id": "m1", "time": AT, "source": "shop", "type": "orders.placed"}
    made = fields(Message("orders.placed", **(given | changed)))
    return [part if isinstance(part, bytes) else part.encode() for part in made]


def stamped(stamp: bytes) -> list[bytes]:
    made = entry()
    made[13] = stamp
    return made


def renamed(index: int, name: bytes) -> list[bytes]:
    made = entry()
    made[index] = name
    return made


ENTRIES = {
    "usual": entry(),
    "the same second": entry(id="m2", time=AT + 0.5),
    "another second": entry(time=AT + 1),
    "before 1970": entry(time=-0.25),
    "another source": entry(source="café"),
    "another type": entry(type="other"),
    "text": entry(content_type="text/plain"),
    "a key": entry(key="k"),
    "headers": entry(headers=(("x", "1"),)),
    "no id": entry(id=""),
    "no stamp": stamped(b""),
    "another zone": stamped(b"2025-11-26T15:17:29.1234567+02:00"),
    "as short": stamped(b"2025-11-26T15:17:29.12+02:00"),
    "a shorter fraction": stamped(b"2025-11-26T15:17:29.123Z"),
    "no time": stamped(b"2025-11-26T15:17:29.xxxxxxxZ"),
    "no text": stamped(b"\xff" * 28),
    "an id that is no text": renamed(7, b"\xff"),
    "a source that is no text": renamed(9, b"\xff"),
    "seven other fields": renamed(8, b"other"),
    "another body": renamed(0, b"data"),
    "little": [b"body", b"1"],
    "nothing": [],
}


def alone(id: str, each: list[bytes]) -> Message[Any]:
    """Read field by field."""
    return _any_message("orders.placed", id, each)[0]


@pytest.mark.parametrize("before", ENTRIES)
def test_what_came_before_changes_nothing(before: str) -> None:
    for name, each in ENTRIES.items():
        pairs = [(b"5-1", list(ENTRIES[before])), (b"5-2", list(each)), (b"5-3", list(each))]
        found, _ = messages("orders.placed", pairs)
        expected = [alone("5-1", ENTRIES[before]), alone("5-2", each), alone("5-3", each)]
        assert found == expected, name


def test_times_are_exact() -> None:
    sent = [AT + n * 0.0123457 for n in range(2000)]
    found, _ = messages("orders.placed", [(b"5-1", entry(time=each)) for each in sent])
    assert [each.time for each in found] == [alone("5-1", entry(time=each)).time for each in sent]
    assert max(abs(each.time - at) for each, at in zip(found, sent, strict=True)) < 3e-7


def test_counts_belong_to_their_entries() -> None:
    copied = [*entry(), b"ce-tdgtopic", b"orders.placed", b"ce-tdgfailures", b"2", b"ce-tdgcrashes", b"1"]
    again = [*copied, b"ce-tdgorigin", b"orders.placed@4-1"]
    found, copies = messages("orders.placed", [(b"5-1", entry()), (b"5-2", copied), (b"5-3", again), (b"5-4", entry())])
    assert len(found) == 4
    assert copies == {b"5-2": (2, 1, ""), b"5-3": (2, 1, "orders.placed@4-1")}
    assert found[1] == found[2]
