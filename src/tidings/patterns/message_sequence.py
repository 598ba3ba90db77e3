"""Parts of one whole, numbered, so that whoever gets them can tell which are still missing (EIP: Message Sequence).

A part has three headers: ``sequence-id``, what it is a part of; ``sequence-number``, from 0; ``sequence-size``, how
many parts there are. They are plain headers: any program can write and read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.errors import Undecodable
from tidings.kernel.message import Headers, Message, new_id

T = TypeVar("T")

ID, NUMBER, SIZE = NAMES = ("sequence-id", "sequence-number", "sequence-size")


class Position(Struct, frozen=True):
    """Where a message stands: ``number`` counts from 0, ``size`` is the number of parts."""

    id: str
    number: int
    size: int

    @property
    def last(self) -> bool:
        """Whether it is the last part."""
        return self.number == self.size - 1


def sequenced(messages: Iterable[Message[T]], id: str = "") -> list[Message[T]]:
    """Drafts as the parts of one sequence, in this order. What was said of another sequence is replaced.

    ``id``: of the sequence; default a new one. In a handler give the id of its input, ``message.id``: a handler that
    runs again must say the same.
    """
    parts = list(messages)
    id = id or new_id()
    return [placed(part, Position(id, number, len(parts))) for number, part in enumerate(parts)]


def placed(message: Message[T], position: Position) -> Message[T]:
    """A draft at a position of a sequence."""
    said = (ID, position.id), (NUMBER, str(position.number)), (SIZE, str(position.size))
    return replace(message, headers=(*(others(message.headers) or ()), *said))


def others(headers: Headers | None) -> Headers | None:
    """Headers without those of a sequence."""
    return tuple(pair for pair in headers or () if pair[0] not in NAMES) or None


def position(message: Message[Any]) -> Position | None:
    """Where a message stands in its sequence; ``None`` if it is part of none.

    Raises ``Undecodable``, which sends it to the dead letters, for headers that make no sense.
    """
    said = {name: value for name, value in message.headers or () if name in NAMES}
    if not said:
        return None
    number, size = said.get(NUMBER, ""), said.get(SIZE, "")
    numeric = all(text.isascii() and text.isdigit() and len(text) < 19 for text in (number, size))
    if not (said.get(ID) and numeric and int(number) < int(size)):
        mend = f"{ID}, {NUMBER} (from 0) and {SIZE} belong together: sequenced(messages) writes them"
        raise Undecodable(f"{said!r:.200} is no place in a sequence", mend=mend)
    return Position(said[ID], int(number), int(size))
