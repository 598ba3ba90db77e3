"""The streams of a resequencer: what a batch of messages does to them, and what becomes of one that waits too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Undecodable, WrongReturn
from tidings.kernel.message import Message, derived_id
from tidings.state import State, Table

from ._forward import forward
from ._letters import letter
from ._options import checked_key
from ._streams import Stream, Waiting, pack, place, unpack
from .message_sequence import ID, position

log = logging.getLogger("tidings")

HEADER = "sequence-gap"  # how many numbers were given up before this message


class Resequencing(Struct, frozen=True, kw_only=True):
    """The streams of one resequencer. Seconds."""

    to: Topic[Any]
    group: str
    streams: Table[bytes]
    waiting: Table[bytes]
    by: Callable[[Any], str] | None = None
    number: Callable[[Any], int] | None = None
    start: int = 0
    capacity: int = 1000
    gap: float = 10.0
    forget: float = 86_400.0
    missing: Literal["skip", "dead"] = "skip"
    late: Literal["drop", "dead"] = "drop"

    async def collect(self, messages: Sequence[Message[Any]], state: State) -> list[Message[Any]]:
        """What may go on now, in order."""
        now, wait = current_clock().now(), Waiting(self.waiting, state)
        placed = [(*self._place(message), message) for message in messages]
        records = await state.get_many(self.streams, [key for key, _, _ in placed])
        streams = {key: unpack(record) for key, record in records.items()}
        going, gaps, late = list[tuple[str, int]](), dict[tuple[str, int], int](), list[Message[Any]]()
        for key, number, message in placed:
            stream = streams.setdefault(key, Stream(self.start))
            if stream.has(number):
                if self.late == "dead" and number < stream.next:
                    late.append(letter(message, self.group, "late"))
                continue
            stream.wait(number, now)
            wait.come(key, number, message)
            going += [(key, n) for n in stream.run(now)]
            if len(stream.waiting) > self.capacity:
                gaps[key, stream.waiting[0]] = self._skip(key, stream)
                going += [(key, n) for n in stream.run(now)]
        found = await wait.take([place(*each) for each in going])
        wait.keep()
        for key in dict.fromkeys(key for key, _, _ in placed):
            self._write(key, streams[key], now, state)
        return [*(self._onward(found[place(*each)], each[0], gaps.get(each, 0)) for each in going), *late]

    async def fired(self, key: str, record: bytes, state: State) -> list[Message[Any]]:
        """A stream has waited for long enough; or it is forgotten."""
        now, stream, wait = current_clock().now(), unpack(record), Waiting(self.waiting, state)
        if not stream.waiting:
            return []
        missed = self._skip(key, stream)
        numbers = stream.run(now)
        found = await wait.take([place(key, number) for number in numbers])
        self._write(key, stream, now, state)
        if self.missing == "dead":
            return [letter(message, self.group, "gap") for message in found.values()]
        return [self._onward(m, key, 0 if n else missed) for n, m in enumerate(found.values())]

    def _place(self, message: Message[Any]) -> tuple[str, int]:
        if self.by is None or self.number is None:
            where = position(message)
            if where is None:
                mend = "by= and number=, or let a splitter send it"
                raise Undecodable(f"message {message.id} is part of no sequence", why=f"no header {ID!r}", mend=mend)
            return where.id, where.number
        number = self.number(message.data)
        if not isinstance(number, int):
            raise WrongReturn(f"number= returned {number!r:.100}", mend="return an int")
        return checked_key(self.by(message.data)), number

    def _skip(self, key: str, stream: Stream) -> int:
        first = stream.waiting[0]
        missed, stream.next = first - stream.next, first
        log.warning("%s: %d before number %d of %r did not come", self.group, missed, first, key)
        return missed

    def _write(self, key: str, stream: Stream, now: float, state: State) -> None:
        due = stream.since + self.gap if stream.waiting else now + self.forget
        state.put(self.streams, key, pack(stream), due=due)

    def _onward(self, message: Message[Any], key: str, missed: int) -> Message[Any]:
        draft = forward(message, self.to)
        told = ((HEADER, str(missed)),) if missed else ()
        return replace(
            draft,
            key=key,
            priority=0,
            headers=(*(draft.headers or ()), *told) or None,
            id=derived_id(message.id, self.group, self.to.name, 0),
            correlation_id=message.correlation_id or message.id,
        )
