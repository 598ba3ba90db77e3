"""A partition's window: what is settled out of order is known to whoever takes over."""

from __future__ import annotations

import random
from typing import Any

from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery
from tidings.transports._offsets import LONGEST, SPAN, OrderedWindow, State, Window, count_settled, read

PLACE = ("orders", 0)


def message(offset: int, key: str | None = None) -> Message[Any]:
    return Message("orders", id=str(offset), key=key)


def fed(window: Window, offsets: range, keys: int = 0) -> list[Delivery]:
    """Records are read; what may be handed out is."""
    taken = []
    for offset in offsets:
        if window.wanted(offset):
            key = f"k{offset % keys}" if keys else None
            taken.append(window.fresh(offset, message(offset, key), 0, 0, False))
    return [delivery for delivery in taken if delivery is not None]


def successor(window: Window, *, clean: bool, kind: type[Window] = Window) -> Window:
    """Whoever takes over from what was committed."""
    text = window.state(clean=clean)
    assert len(text) <= LONGEST
    return kind(PLACE, window.floor, read(text))


def test_in_order() -> None:
    window = Window(PLACE, 10, State())
    for delivery in fed(window, range(10, 20))[:4]:
        window.settle(delivery)
    assert window.floor == 14
    assert read(window.state(clean=True)) == State()


def test_what_is_settled_out_of_order_does_not_come_again() -> None:
    random.seed(4)
    for _ in range(50):
        window = Window(PLACE, 5, State())
        left = fed(window, range(5, 200))
        random.shuffle(left)
        for delivery in left[:120]:
            window.settle(delivery)
        after = successor(window, clean=True)
        again = fed(after, range(after.next, 220))
        assert [d.token for d in again] == sorted([*(d.token for d in left[120:]), *range(200, 220)])
        assert not any(d.suspect for d in again)


def test_handed_on_before_all_was_read_again() -> None:
    window = Window(PLACE, 0, State())
    for delivery in fed(window, range(100))[50:]:
        window.settle(delivery)
    second = successor(window, clean=True)
    fed(second, range(10))
    third = successor(second, clean=True)
    assert [d.token for d in fed(third, range(100))] == list(range(50))
    assert count_settled(read(second.state(clean=True))) == 50


def test_what_a_dead_member_may_have_had_is_suspect() -> None:
    window = Window(PLACE, 0, State())
    window.state(clean=False)
    taken = fed(window, range(20))
    for delivery in taken[5:]:
        window.settle(delivery)
    after = successor(window, clean=False)
    again = fed(after, range(1000))
    assert [d.token for d in again if d.suspect] == [*range(5), *range(20, after.suspects)]
    assert after.suspects >= 20
    assert not again[-1].suspect


def test_a_mark_that_is_left_is_a_crash_and_a_released_one_is_none() -> None:
    window = Window(PLACE, 0, State())
    (first,) = fed(window, range(1))
    after = successor(window, clean=False)
    (suspect,) = fed(after, range(1))
    after.facts[0].marked = True
    third = successor(after, clean=False)
    (again,) = fed(third, range(1))
    assert (first.suspect, suspect.crashes, again.crashes, again.suspect) == (False, 0, 1, True)
    third.facts[0].marked = True
    third.put_back(again, 0.0)
    (released,) = third.due(1.0, 9)
    assert (released.crashes, released.suspect) == (1, False)


def test_failures_are_handed_on() -> None:
    window = Window(PLACE, 0, State())
    taken = fed(window, range(3))
    window.put_back(taken[1], 50.0, failures=2)
    after = successor(window, clean=True)
    assert [d.token for d in fed(after, range(3))] == [0, 2]
    assert not list(after.due(49.0, 9))
    assert [(d.token, d.failures) for d in after.due(50.0, 9)] == [(1, 2)]


def test_the_state_stays_short() -> None:
    """Brokers refuse 4,096 characters of metadata: the commit would fail for ever."""
    window = Window(PLACE, 0, State())
    taken = fed(window, range(SPAN + 10))
    assert window.full
    for delivery in taken[1::2]:
        window.settle(delivery)
    for delivery in taken[::2][:2000]:
        window.put_back(delivery, 1e9 + delivery.token, failures=3)
    after = successor(window, clean=False)
    assert after.facts[0].failures == 3
    assert len(fed(after, range(SPAN))) + len(after.back) == SPAN // 2


def test_a_settled_or_foreign_delivery_is_not_held() -> None:
    window = Window(PLACE, 0, State())
    first, second = fed(window, range(2))
    assert window.settle(first)
    assert not window.settle(first)
    window.put_back(second, 0.0)
    (again,) = window.due(0.0, 9)
    assert [window.holds(d) for d in (first, second, again)] == [False, False, True]
    window.alive = False
    assert not window.holds(again)


def test_what_lies_beyond_the_end_is_not_the_groups() -> None:
    window = Window(PLACE, 0, State(), 3)
    assert [d.token for d in fed(window, range(10))] == [0, 1, 2]


def test_what_was_seen_does_not_come_twice() -> None:
    """After a pause the client may read some again."""
    window = Window(PLACE, 0, State())
    assert len(fed(window, range(10))) == 10
    assert not fed(window, range(4, 10))


def test_ordered_a_failed_message_holds_its_key() -> None:
    window = OrderedWindow(PLACE, 0, State())
    taken = fed(window, range(6), keys=2)
    window.put_back(taken[0], 5.0, failures=1)
    for delivery in taken[2::2]:
        window.put_back(delivery, 0.0)
    assert not fed(window, range(6, 7), keys=2)  # of the held key
    assert not list(window.due(4.0, 9))
    (first,) = window.due(5.0, 9)
    assert (first.token, first.failures) == (0, 1)
    assert not list(window.due(9.0, 9)), "alone"
    window.settle(first)
    assert [d.token for d in window.due(9.0, 9)] == [2, 4, 6]
    after = successor(window, clean=True, kind=OrderedWindow)
    assert after.next == 1


def test_ordered_a_suspect_goes_alone() -> None:
    window = OrderedWindow(PLACE, 0, State())
    fed(window, range(4), keys=1)
    after = successor(window, clean=False, kind=OrderedWindow)
    assert not fed(after, range(4), keys=1)
    for offset in range(4):
        (delivery,) = after.due(0.0, 9)
        assert (delivery.token, delivery.suspect) == (offset, True)
        after.settle(delivery)
    assert isinstance(after, OrderedWindow)
    assert not after.lanes


def test_gaps_in_what_was_settled() -> None:
    """A transaction's end has an offset and is no record; compaction takes some away."""
    window = Window(PLACE, 0, State())
    for delivery in fed(window, range(20))[5:]:
        window.settle(delivery)
    after = successor(window, clean=False)
    left = fed(after, range(2))
    assert after.skip(30)
    assert not after.skip(30)
    for delivery in left:
        after.settle(delivery)
    assert (after.floor, read(after.state(clean=True))) == (30, State())
    assert [d.token for d in fed(after, range(30, 32))] == [30, 31]


def test_what_the_log_has_lost_is_passed_over() -> None:
    """Retention and compaction leave gaps, which nobody may wait for; but none that could not be remembered."""
    window = Window(PLACE, 10, State())
    window.reach(100_000)
    (delivery,) = fed(window, range(100_000, 100_001))
    assert window.floor == 100_000
    window.reach(100_000 + SPAN - 1)
    assert (window.floor, window.next) == (100_000, 100_000 + SPAN - 1)
    window.reach(300_000)
    assert window.next == 100_000 + SPAN - 1
    window.settle(delivery)
    window.reach(300_000)
    assert window.floor == 300_000


def test_what_would_be_committed_if() -> None:
    """As if some were settled and others had come back; nothing has happened yet, and then it does."""
    for kind in (Window, OrderedWindow):
        window = kind(PLACE, 10, State())
        held = fed(window, range(10, 18), keys=3)
        window.put_back(held.pop(5), 0.0, 2)
        window.writer, window.turn = "me", 3
        text = window.state(clean=False)
        told = window.without(held[:2] + held[3:4], [(held[2], 7.0, 1), (held[4], 0.0, None)])
        assert window.state(clean=False) == text
        assert all(window.holds(delivery) for delivery in held)
        for delivery in held[:2] + held[3:4]:
            window.settle(delivery)
        window.put_back(held[2], 7.0, 1)
        window.put_back(held[4], 0.0, None)
        assert told == (window.floor, window.state(clean=False)) == (12, told[1])
        state = read(told[1])
        assert (state.facts[0].failures, state.facts[0].due, state.facts[3].failures) == (1, 7.0, 2)
        assert (state.writer, state.turn) == ("me", 3)
        assert read(window.state(clean=True)).writer == ""
