"""Who sends webhooks how: a provider's secrets, its signatures, and where it says what it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from msgspec import Struct

from .refusals import Malformed
from .signatures import Keys, plain_key, standard_key, verify_github, verify_standard, verify_stripe

LONGEST = 200  # characters of an id or a type

Headers = Mapping[str, str]


class Told(Struct, frozen=True):
    """What a delivery says of itself: an id, the same when it is sent again, and the event's type, if it has one."""

    id: str
    type: str


class Scheme(Struct, frozen=True):
    """One provider's way. ``verify``: keys, headers, body, now, tolerance; ``tell``: headers, fields of the body."""

    key: Callable[[str], bytes]
    verify: Callable[[Keys, Headers, bytes, float, float], None]
    tell: Callable[[Headers, Mapping[str, Any]], Told]


def is_plain(text: Any) -> TypeGuard[str]:
    """Whether it can be an id or a type."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable()


def _plain(told: Mapping[str, Any], name: str) -> str:
    text = told.get(name)
    if is_plain(text):
        return text
    why = f"every delivery has one, plain text of at most {LONGEST} characters"
    raise Malformed(f"this webhook has no {name!r}", why=why, mend="see that its scheme is the right one")


def _standard(headers: Headers, fields: Mapping[str, Any]) -> Told:
    kind = fields.get("type")
    return Told(_plain(headers, "webhook-id"), kind if is_plain(kind) else "")


def _github(headers: Headers, fields: Mapping[str, Any]) -> Told:
    return Told(_plain(headers, "x-github-delivery"), _plain(headers, "x-github-event"))


def _stripe(headers: Headers, fields: Mapping[str, Any]) -> Told:
    return Told(_plain(fields, "id"), _plain(fields, "type"))


SCHEMES = {
    "standard": Scheme(standard_key, verify_standard, _standard),
    "github": Scheme(plain_key, verify_github, _github),
    "stripe": Scheme(plain_key, verify_stripe, _stripe),
}
