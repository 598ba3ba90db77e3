"""The slip of a routing slip: what a message carries of its way, as pure data, and the message that follows another."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.dead import original_headers
from tidings.kernel.errors import Reject
from tidings.kernel.message import Message, derived_id

HEADER = "routing-slip"
MOST_ERROR = 300  # characters


class Slip(Struct, frozen=True, omit_defaults=True):
    """What a message carries of its way: pure data. ``undo``: the steps to compensate, the next first."""

    todo: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    failed: str = ""  # the step that failed for good, and why
    error: str = ""

    @property
    def next(self) -> str:
        """Where it goes now, below the slip's name."""
        if self.failed:
            return f"undo.{self.undo[0]}" if self.undo else "compensated"
        return f"do.{self.todo[0]}" if self.todo else "completed"

    def passed(self, undoable: bool) -> Slip:
        """The step is done."""
        step, *todo = self.todo
        undo = (step, *self.undo) if undoable else self.undo
        return replace(self, todo=tuple(todo), done=(*self.done, step), undo=undo)

    def skipped(self) -> Slip:
        """The step had nothing to do, and so nothing to undo."""
        return replace(self, todo=self.todo[1:])

    def gave_up(self, why: str) -> Slip:
        """The step has failed for good."""
        return replace(self, failed=self.todo[0], error=why[:MOST_ERROR])

    def undone(self) -> Slip:
        """A compensation is done."""
        return replace(self, undo=self.undo[1:])


def slip_of(message: Message[Any]) -> Slip:
    """The slip of a message: what is done and to do, and of an outcome which step ``failed`` and its ``error``.

    Raises ``Reject`` where there is none, or none that can be read.
    """
    try:
        return msgspec.json.decode(message.header(HEADER), type=Slip)
    except msgspec.MsgspecError as error:
        raise Reject(f"no routing slip in the header {HEADER!r}: {error}") from error


def written(slip: Slip) -> str:
    """A header's text."""
    return msgspec.json.encode(slip).decode()


def following(message: Message[Any], slip: Slip, name: str, result: Message[Any] | None = None) -> Message[Any]:
    """A draft of what follows a message of the slip called ``name``: what its handler made of it, or else the same
    payload, to where the slip says now. Its id is the same when it is made again."""
    body = result or message
    topic = f"{name}.{slip.next}"
    others = [(key, value) for key, value in original_headers(message.headers) or () if key != HEADER]
    return Message(
        topic,
        body.body,
        id=derived_id(message.id, name, topic, 0),
        key=message.key,
        type=topic,
        content_type=body.content_type,
        headers=(*others, (HEADER, written(slip))),
        priority=message.priority,
    )
