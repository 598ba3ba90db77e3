"""Reading and replaying dead letters: what ``tidings dead`` does.

Nothing is rewritten: a replay or a purge appends a marker, and ``fold`` applies the markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .kernel.dead import original_headers
from .kernel.message import Message
from .kernel.topics import DEAD, GROUP
from .kernel.transport import Stored


def revived(letter: Message[Any], group: str) -> Message[Any]:
    """The message of a dead letter, addressed to the group that failed and to nobody else."""
    return replace(letter, headers=original_headers(letter.headers), address=GROUP + group)


class DeadLetter(Struct, frozen=True):
    """A dead letter as listed: its position, its message with our headers, and what became of it: ``"replayed"``,
    ``"edited"``, ``"purged"``, or nothing yet.
    """

    position: int
    message: Message[Any]
    mark: str = ""

    @property
    def reason(self) -> str:
        return self.message.header("tdgreason")

    @property
    def error(self) -> str:
        return self.message.header("tdgerror")


def marker(letter: DeadLetter, group: str, mark: str) -> Message[Any]:
    """Says that a dead letter was replayed, edited or purged; nothing is rewritten."""
    headers = (("tdggroup", group), ("tdgmark", mark), ("tdgmarks", str(letter.position)))
    return Message(letter.message.topic, body=b"", headers=headers, address=DEAD + group)


def fold(stored: Sequence[Stored]) -> list[DeadLetter]:
    """Dead letters with their markers applied; the purged ones are left out."""
    marks = {s.message.header("tdgmarks"): s.message.header("tdgmark") for s in stored if s.message.header("tdgmark")}
    letters = [
        DeadLetter(s.position, s.message, marks.get(str(s.position), ""))
        for s in stored
        if not s.message.header("tdgmark")
    ]
    return [letter for letter in letters if letter.mark != "purged"]
