"""Typed channels: ``Topic[T]`` and ``Service[Q, R]``, and the drafts of messages made from them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from copy import copy
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    is_typeddict,
    overload,
)

from .kernel.errors import Duration, InvalidName, InvalidOption, PayloadRefused, nearest
from .kernel.message import Headers, Message, seconds
from .kernel.topics import CAPTURE, DEAD, TOKEN, captures, check_pattern, check_topic, is_pattern, refuse_reserved

if TYPE_CHECKING:
    from typing_extensions import TypeForm, Unpack

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")


class Meta(TypedDict, total=False):
    """What may be said of a message when it is made.

    ``key``: orders and groups messages. ``delay`` or ``at``: not before. ``expires``: worthless so long after
    publishing. ``priority``: 0 to 9, higher first. ``id``: for idempotent publishing.
    """

    key: str | None
    headers: Mapping[str, str]
    delay: Duration
    at: datetime
    expires: Duration
    priority: int
    id: str


class Topic(Generic[T]):
    """A typed channel (EIP: Datatype Channel).

    ``name`` may hold captures, ``"sensors.{device}.temperature"``: ``bind`` fills them to publish, handlers get them by
    name. ``type`` is what payloads are (default: any JSON). ``bus`` names one of the app's further buses. ``lax``
    allows conversions such as ``"1"`` for an int. Raises ``InvalidName``; ``InvalidHandler`` for a type that cannot be
    decoded.
    """

    __slots__ = ("bus", "classes", "lax", "name", "pattern", "publishable", "template", "type")

    @overload
    def __init__(self, name: str, type: TypeForm[T], *, bus: str = ..., lax: bool = ...) -> None: ...
    @overload
    def __init__(self: Topic[Any], name: str, *, bus: str = ..., lax: bool = ...) -> None: ...
    def __init__(self, name: str, type: Any = Any, *, bus: str = "", lax: bool = False) -> None:
        self.pattern = check_pattern(name)
        if not self.pattern.startswith(DEAD):
            refuse_reserved(self.pattern)
        captures(name)
        self.name = self.template = name
        self.publishable = _publishable(name)
        self.type, self.bus, self.lax = type, bus, lax
        self.classes = _plain_classes(type)

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, {getattr(self.type, '__name__', self.type)})"

    def bind(self, **values: str) -> Topic[T]:
        """This topic with its captures filled. Raises ``InvalidName``; ``token()`` escapes any text."""
        known = captures(self.template)
        if wrong := values.keys() ^ known.keys():
            name = sorted(wrong)[0]
            said = f"has no capture {name!r}" if name in values else f"needs {name!r}"
            raise InvalidName(f"{self.template!r} {said}", mend=nearest(name, known) or "bind() fills every capture")
        for name, value in values.items():
            if not isinstance(value, str) or not TOKEN.fullmatch(value):
                raise InvalidName(f"{name}={value!r} is no token", mend=f"tidings.token({value!r})")
        bound = copy(self)
        bound.name = bound.pattern = CAPTURE.sub(lambda found: values[found[1]], self.template)
        bound.publishable = _publishable(bound.name)
        return bound

    def __call__(self, data: T, /, **meta: Unpack[Meta]) -> Message[T]:
        """A draft of a message, to be returned or published. Raises ``PayloadRefused``, ``InvalidOption``."""
        if not self.publishable:
            refuse_reserved(check_topic(self.name))
        if self.classes and not isinstance(data, self.classes):
            wanted = " | ".join(sorted(c.__name__ for c in self.classes))
            raise PayloadRefused(
                f"{self.name!r} carries {wanted}, not {type(data).__name__}", mend=f"publish a {wanted}"
            )
        if not meta:
            return Message(self.name, data=data, type=self.template, bus=self.bus)
        return Message(self.name, data=data, type=self.template, bus=self.bus, **draft_fields(meta))


class Service(Generic[Q, R]):
    """A typed request-reply channel (EIP: Request-Reply): requests are ``request``, each reply is ``reply``."""

    __slots__ = ("bus", "lax", "name", "reply", "request")

    def __init__(
        self, name: str, request: TypeForm[Q], reply: TypeForm[R], *, bus: str = "", lax: bool = False
    ) -> None:
        self.name = refuse_reserved(check_topic(name))
        self.request, self.reply, self.bus, self.lax = cast(Any, request), cast(Any, reply), bus, lax

    def __repr__(self) -> str:
        return f"Service({self.name!r})"


def drafted(topic: Any, data: Any, meta: Any) -> Message[Any]:
    """What ``publish`` was given, as a draft."""
    if isinstance(topic, Message):
        return topic
    if not isinstance(topic, Topic):
        raise InvalidOption(f"{topic!r:.80} is no topic", mend='publish(Topic("orders.placed", Order), data)')
    return topic(data, **meta)


def draft_fields(meta: Meta) -> dict[str, Any]:
    """A message's fields from what a user said of it, checked."""
    fields: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", meta).items():
        if name in ("delay", "expires"):
            fields[name] = seconds(value, name)
        elif name == "at":
            fields["deliver_at"] = _timestamp(value)
        elif name == "headers":
            fields["headers"] = _headers(value)
        elif name == "priority":
            if not isinstance(value, int) or not 0 <= value <= 9:
                raise InvalidOption(f"priority cannot be {value!r}", mend="0 (default) to 9, higher first")
            fields[name] = value
        elif name in ("key", "id"):
            fields[name] = None if value is None else _text(name, value)
        else:
            raise InvalidOption(f"a message has no option {name!r}", mend=nearest(name, Meta.__annotations__))
    if "delay" in fields and "deliver_at" in fields:
        raise InvalidOption("delay and at exclude each other", mend="drop one")
    return fields


def _timestamp(value: Any) -> float:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidOption(f"at cannot be {value!r}", mend="a datetime with a time zone: datetime.now(UTC) + ...")
    return value.timestamp()


def _headers(value: Mapping[str, str]) -> Headers:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"headers cannot be {value!r}", mend='headers={"name": "text"}')
    for name, text in value.items():
        if _text("a header's name", name).startswith("tdg"):
            raise InvalidOption(f"header {name!r} is reserved", why="'tdg…' belong to Tidings", mend="rename it")
        _text(f"header {name!r}", text)
    return tuple(value.items())


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidOption(f"{name} cannot be {value!r}", mend="a str without lone surrogates")
    return value


def _publishable(name: str) -> bool:
    return not name.startswith("_") and "{" not in name and not is_pattern(name)


def _plain_classes(kind: Any) -> tuple[type, ...]:
    """The classes an ``isinstance`` check of a payload of ``kind`` can use; ``()`` where only decoding could tell."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for member in members:
        if member in (Any, object) or not isinstance(member, type) or get_origin(member) or is_typeddict(member):
            return ()
    return tuple(members) if float not in members else (*members, int)
