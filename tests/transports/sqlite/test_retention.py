"""The chain of tables: what is dropped, what never is, and numbers that are never used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.transports.sqlite.helpers import Bench, group

from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery, Retry, Settlement
from tidings.transports._numbers import pack, unpack
from tidings.transports._records import freeze
from tidings.transports.sqlite.claims import Claims

LONG = 10_000.0


class Story(Bench):
    def __init__(self, path: Path, **more: Any) -> None:
        super().__init__(path / "bus.db", segment_rows=10, **more)
        self.me = self.member()

    def publish(self, count: int, topic: str = "orders.x", **more: Any) -> None:
        messages = [Message(topic, body=b"%d" % n, **more) for n in range(count)]
        for message in messages:
            self.do(self.me, self.me.log.append, *freeze([message], self.now))

    def claim(self, id: int, limit: int = 100) -> list[Delivery]:
        taken = self.do(self.me, self.me.claim, id, limit)
        fresh = zip(taken.found.numbers, taken.found.messages, strict=True)
        rows = [*taken.takes, *((taken.claim, *pair) for pair in fresh)]
        return [Delivery(message, held, seq, held.failures) for held, seq, message in rows]

    def settle(self, *settlements: Settlement) -> None:
        assert self.do(self.me, self.me.settle, settlements, {}) == []

    def numbers(self) -> list[int]:
        tables = [f"log_{segment.n}" for segment in self.me.log.segments]
        return [n for table in tables for (n,) in self.con.execute(f"SELECT seq FROM {table}")]

    def age(self) -> None:
        """Two looks after a long time: the first closes the newest table."""
        self.now += LONG
        self.do(self.me, self.me.beat, self.now)
        for _ in range(2):
            self.do(self.me, self.me.retain)


@pytest.fixture
def story(tmp_path: Path) -> Any:
    story = Story(tmp_path)
    yield story
    story.con.close()


def test_old_messages_go_and_their_numbers_do_not_come_again(story: Story) -> None:
    story.publish(25)
    assert story.numbers() == list(range(1, 26))
    story.age()
    assert story.numbers() == []
    story.publish(1)
    assert story.numbers() == [26]


@pytest.mark.parametrize("ordered", [False, True])
def test_what_a_group_has_not_read_stays(story: Story, ordered: bool) -> None:
    id = story.do(story.me, story.me.register, group("orders.>", ordered=ordered))
    story.publish(25)
    story.publish(15, "other.x")
    story.settle(*(Settlement(d) for d in story.claim(id, 12)))
    story.age()
    assert story.numbers()[0] == 11
    story.settle(*(Settlement(d) for d in story.claim(id)))
    story.age()
    assert story.numbers() == []


def test_what_is_in_hand_stays(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    story.publish(25)
    held = story.claim(id)
    story.settle(*(Settlement(d) for d in held if d.token != 15))
    story.age()
    assert story.numbers() == list(range(11, 26))


def test_what_is_parked_keeps_its_body(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    story.publish(25)
    held = story.claim(id)
    story.settle(*(Settlement(d, Retry(2 * LONG, 1)) if d.token == 15 else Settlement(d) for d in held))
    story.age()
    assert story.numbers() == []
    story.age()
    story.age()
    (again,) = story.claim(id)
    assert (again.token, again.message.body, again.failures) == (15, b"14", 1)
    story.settle(Settlement(again))
    story.publish(11)
    story.settle(*(Settlement(d) for d in story.claim(id)))
    story.age()
    assert story.con.execute("SELECT count(*) FROM kept").get == 0


def test_a_replay_keeps_what_only_its_parked_row_remembers(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    story.publish(25)
    held = story.claim(id)
    story.settle(*(Settlement(d, Retry(LONG, 1)) if d.token in (15, 30) else Settlement(d) for d in held))
    story.age()
    story.publish(3)
    story.do(story.me, story.me.leave, id)
    story.do(story.me, story.me.seek, "shop.bill", 0.0)
    story.now += LONG
    assert [d.token for d in story.claim(id)] == [15, 26, 27, 28]


def test_a_quiet_group_does_not_hold_back_what_others_read(story: Story) -> None:
    story.do(story.me, story.me.register, group("quiet.>"))
    story.publish(25)
    story.age()
    assert story.numbers() == []


def test_an_abandoned_group_does_not_hold_back_for_ever(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    story.publish(25)
    story.do(story.me, story.me.leave, id)
    story.age()
    assert len(story.numbers()) == 25
    story.now += 8 * 86400
    story.age()
    assert story.numbers() == []
    story.do(story.me, story.me.register, group())
    story.publish(1)
    assert len(story.claim(id)) == 1


def test_size_drops_the_oldest_that_nobody_needs(tmp_path: Path) -> None:
    story = Story(tmp_path, max_size=6_000)
    story.publish(300)
    assert len(story.numbers()) < 150
    assert story.numbers()[-1] == 300
    story.con.close()


def test_delayed_messages_wait_outside_the_log(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    story.publish(3, deliver_at=story.now + 50)
    assert story.claim(id) == []
    story.now += 49
    story.do(story.me, story.me.log.move_due)
    assert story.claim(id) == []
    story.now += 1
    story.do(story.me, story.me.log.move_due)
    assert [d.message.body for d in story.claim(id)] == [b"0", b"1", b"2"]


def test_a_rolled_back_transaction_leaves_nothing_in_memory(story: Story) -> None:
    me = story.me
    id = story.do(me, me.register, group())
    story.publish(5)
    held = story.claim(id, 3)

    def doomed() -> None:
        me.settle([Settlement(held[0])], {})
        me.claim(id, 10)
        me.log.append(*freeze([Message("brand.new", body=b"")], story.now))
        me.log.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        story.do(me, doomed)
    story.settle(*(Settlement(d) for d in held))
    assert [d.token for d in story.claim(id)] == [4, 5]
    story.publish(1, "brand.old")
    assert story.numbers() == [1, 2, 3, 4, 5, 6]


def test_two_members_one_group(story: Story) -> None:
    id = story.do(story.me, story.me.register, group())
    other = story.member(Claims)
    story.do(other, other.register, group())
    story.publish(6)
    mine = story.claim(id, 2)
    theirs = story.do(other, other.claim, id, 10)
    assert list(theirs.found.numbers) == [3, 4, 5, 6]
    story.now += 31
    story.do(other, other.beat, story.now)
    other.gone = lambda mono: [story.me.member]  # type: ignore[method-assign]
    story.do(other, other.expire)
    again = story.do(other, other.claim, id, 10)
    assert [(held.suspect, seq) for held, seq, _ in again.takes] == [(True, 1)]
    failures = story.do(story.me, story.me.settle, [Settlement(mine[0])], {})
    assert [f.kind for f in failures] == ["fenced"]
    assert not mine[0].session.alive


@pytest.mark.parametrize(
    "numbers", [[1], [5, 6, 7], [1, 300, 301], [2**40, 2**40 + 255, 2**40 + 511], [1, 2**40], list(range(1, 999, 3))]
)
def test_todo_is_small_and_faithful(numbers: list[int]) -> None:
    assert unpack(pack(numbers)) == numbers
    assert len(pack(numbers)) <= 9 + 8 * (len(numbers) - 1)
