"""The WebSocket protocol ``tidings.v1``: each frame is a JSON object with one member, named after what is said.

The client says ``{"subscribe": {…}}`` and so on, the server ``{"message": {…}}``. ``id`` is the client's name for a
subscription, a publish or a request, and is in every answer to it.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tidings.channels import draft_fields
from tidings.kernel.errors import PublishFailed, TidingsError
from tidings.kernel.message import BINARY, JSON, Message

from .cloudevents import is_json, media_type, structured
from .feeds import Item
from .refusals import Malformed

log = logging.getLogger("tidings.gateway")

PROTOCOL = "tidings.v1"

Id = Annotated[str, Meta(min_length=1, max_length=200)]
Seconds = Annotated[float, Meta(ge=0, lt=1e10)]
Count = Annotated[int, Meta(ge=0)]


class Said(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may say, and of what."""

    id: Id


class Subscribe(Said, frozen=True, kw_only=True):
    """Copies from now on, or since the cursor ``after``; with ``group`` its messages, until each is acknowledged.

    ``credit``: how many may be unacknowledged. ``start``: where a new group begins, Unix seconds; 0: the first
    retained. ``acknowledge``: seconds that the client may have a message in hand.
    """

    pattern: str
    after: str | None = None
    group: str | None = None
    credit: Count = 100
    start: Seconds | None = None
    ordered: bool = False
    acknowledge: Annotated[float, Meta(gt=0)] | None = None


class Unsubscribe(Said, frozen=True, kw_only=True):
    """No more of it: a subscription, or the replies to a request."""


class Ack(Said, frozen=True, kw_only=True):
    """Done with these messages of a subscription."""

    numbers: tuple[int, ...]


class Fail(Said, frozen=True, kw_only=True):
    """A message could not be handled: again later, as the bus does; after ``retry`` seconds; or never (``reject``)."""

    number: int
    error: str = ""
    retry: Seconds | None = None
    reject: bool = False


class Credit(Said, frozen=True, kw_only=True):
    """So many messages may be unacknowledged from now on; 0: none for now."""

    credit: Count


class Content(Said, frozen=True, kw_only=True):
    """``data``: JSON, or text where ``content_type`` is not JSON; ``data_base64``: bytes."""

    data: Raw | UnsetType = UNSET
    data_base64: bytes | UnsetType = UNSET
    content_type: str | None = None

    def body(self) -> tuple[bytes, str]:
        """What travels, and its content type. Raises ``Malformed``."""
        if isinstance(self.data, Raw) and isinstance(self.data_base64, bytes):
            raise Malformed("both data and data_base64", mend="send one of them")
        if isinstance(self.data_base64, bytes):
            body, kind = self.data_base64, self.content_type or BINARY
        else:
            body = bytes(self.data) if isinstance(self.data, Raw) else b""
            kind = self.content_type or JSON
            if body and not is_json(media_type(kind)):
                body = _text(body)
        return body, kind


class Publish(Content, frozen=True, kw_only=True):
    """A message for a topic. ``message_id``: its id, to publish it again when the answer to the first time was lost."""

    topic: str
    message_id: Annotated[str, Meta(max_length=1000)] = ""
    key: str | None = None
    type: str = ""
    headers: dict[str, str] = {}
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    delay: Seconds | None = None
    at: datetime | None = None
    expires: Seconds | None = None

    def draft(self) -> Message[Any]:
        """What is published. Raises ``Malformed``, ``InvalidOption``."""
        body, kind = self.body()
        told: dict[str, Any] = {
            "id": self.message_id,
            "key": self.key,
            "headers": self.headers,
            "priority": self.priority,
        }
        told |= {"delay": self.delay, "at": self.at, "expires": self.expires}
        fields = draft_fields({name: value for name, value in told.items() if value})  # type: ignore[arg-type]
        return Message(self.topic, body, type=self.type, content_type=kind, **fields)


class Request(Content, frozen=True, kw_only=True):
    """Ask a service. ``timeout``: seconds until the last reply."""

    service: str
    timeout: Annotated[float, Meta(gt=0, le=3600)] = 30.0


class Frame(Struct, frozen=True, forbid_unknown_fields=True):
    """One of these."""

    subscribe: Subscribe | UnsetType = UNSET
    unsubscribe: Unsubscribe | UnsetType = UNSET
    ack: Ack | UnsetType = UNSET
    fail: Fail | UnsetType = UNSET
    credit: Credit | UnsetType = UNSET
    publish: Publish | UnsetType = UNSET
    request: Request | UnsetType = UNSET


class _Named(Struct):
    id: str = ""


_frame = msgspec.json.Decoder(Frame)
_named = msgspec.json.Decoder(dict[str, _Named])
_string = msgspec.json.Decoder(str)


class NotJSON(Malformed):
    """A frame that is no JSON: what comes after it is not to be trusted either."""


def read(text: str) -> Said:
    """What a client says. Raises ``Malformed``; ``NotJSON``."""
    try:
        frame = _frame.decode(text)
    except msgspec.ValidationError as error:
        known = ", ".join(Frame.__struct_fields__)
        raise Malformed(f"this frame cannot be read: {error}", mend=f'{{"publish": {{…}}}}, or {known}') from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise NotJSON(f"this frame is no JSON: {error}") from None
    said = [each for each in msgspec.structs.astuple(frame) if each is not UNSET]
    if len(said) != 1:
        raise Malformed(f"a frame says one thing, this one {len(said)}", mend="send a frame for each")
    found: Said = said[0]
    return found


def named(text: str) -> str:
    """The id in a frame that could not be read, or ``""``."""
    try:
        return next((said.id for said in _named.decode(text).values()), "")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ""


def _text(data: bytes) -> bytes:
    try:
        return _string.decode(data).encode()
    except msgspec.DecodeError:
        raise Malformed("data is no string, and the content type is not JSON", mend="send data_base64") from None


# -- what the server says


def said(name: str, **fields: Any) -> str:
    """``{"name": {fields}}``; fields that are None are left out."""
    told = {field: value for field, value in fields.items() if value is not None}
    return msgspec.json.encode({name: told}).decode()


def copy(item: Item) -> str:
    """A ``message`` frame from after its subscription's id: the same for all who follow.

    ``""`` for a message that cannot be written out, which is logged once.
    """
    try:
        return f',"cursor":{_quoted(item.cursor)},"event":{structured(item.message).decode()}}}}}'
    except Exception:
        log.exception("a message of %s cannot be written out", item.message.topic)
        return ""


def share(message: Message[Any], number: int, attempt: int) -> str:
    """The same of a group's message."""
    return f',"number":{number},"attempt":{attempt},"event":{structured(message).decode()}}}}}'


def beginning(id: str) -> str:
    """A ``message`` frame up to its subscription's id."""
    return f'{{"message":{{"id":{_quoted(id)}'


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def refused(error: TidingsError, id: str = "") -> str:
    """An ``error`` frame."""
    told: dict[str, Any] = {"id": id or None, "code": error.code, "what": error.what}
    told |= {"why": error.why or None, "mend": error.mend or None}
    if isinstance(error, PublishFailed):
        told["unknown"] = bool(error.unknown) or None
    return said("error", **told)
