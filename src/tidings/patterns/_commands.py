"""What a control bus says beside ``tidings.control.Order``, as bodies of messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from tidings.control import CONTROL, Answer, Order, Question
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import Message, new_id

LevelName = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class _Command(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    by: str = ""
    again: bool = False  # said before: nobody waits for answers


class Rate(_Command, frozen=True, tag="rate"):
    """A group starts at most so many messages a second, in each process; ``None``: as many as it can."""

    group: str
    per_second: Annotated[float, Meta(gt=0)] | None = None


class Level(_Command, frozen=True, tag="level"):
    """What a logger of the standard library lets through; ``None``: what it did at first."""

    level: LevelName | None = None
    logger: str = "tidings"


class Switch(_Command, frozen=True, tag="switch"):
    """Turn what the app has called ``ControlBus.switch`` for: a detour, for instance."""

    name: str
    on: bool


class Done(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="done"):
    """How a process has obeyed ``of``, which is ``rate shop.bill``, ``level tidings`` or ``switch detour``."""

    of: str
    host: str
    pid: int
    why: str = ""  # it has not


Command = Rate | Level | Switch
Said = Order | Answer | Question | Rate | Level | Switch | Done
_read = msgspec.json.Decoder(Said).decode


def said(message: Message[Any]) -> Said | None:
    """What a message on a control topic says; ``None`` for what is none of ours."""
    try:
        return _read(message.body)  # type: ignore[no-any-return]
    except msgspec.MsgspecError:
        return None


def object_of(what: Command) -> str:
    """What a command is about: of the same, the latest holds."""
    match what:
        case Rate():
            return f"rate {what.group}"
        case Level():
            return f"level {what.logger}"
    return f"switch {what.name}"


def draft(app: str, data: Said, answers: str | None = None) -> Message[Any]:
    """A message to all processes of an app, or what one of them answers to the message with this id."""
    topic = CONTROL + app
    return Message(topic, data=data, id=new_id(), type=topic, correlation_id=answers)


def checked(what: Order | Command, by: str) -> Order | Command:
    """The command, in somebody's name; raises ``InvalidOption`` for what nobody could obey."""
    try:
        _read(msgspec.json.encode(what))
    except msgspec.MsgspecError as error:
        raise InvalidOption(f"{what!r} means nothing", mend=str(error)) from None
    return replace(what, by=what.by or by)
