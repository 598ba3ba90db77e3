"""Which messages are meant: by key, header, time, and what the body says."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from tidings import Message
from tidings.kernel.errors import InvalidOption

from ._options import since_time
from ._scan import Wanted

Key = Annotated[str | None, Parameter(name="--key", help="Only those with this key.")]
Headers = Annotated[
    list[str], Parameter(name="--header", help="Only those with this header: NAME, or NAME=VALUE.", negative=())
]
Since = Annotated[
    str | None,
    Parameter(name="--since", help="Only those since then: -1h, or a date and time.", allow_leading_hyphen=True),
]
Where = Annotated[
    list[str],
    Parameter(
        name="--where",
        help="Only those whose JSON body says so: total>=100, customer.name=Ann, note~text, items.0.n!=3.",
        negative=(),
    ),
]

CONDITION = re.compile(r"\s*([^!<>=~]+?)\s*(!=|>=|<=|=|>|<|~)\s*(.*)", re.DOTALL)
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda found, text: text in found,
}
ABSENT = object()


def filters(
    key: str | None = None, headers: Sequence[str] = (), since: str | None = None, where: Sequence[str] = ()
) -> list[Wanted]:
    """The tests that these options stand for. Raises ``InvalidOption``."""
    tests = list[Wanted]()
    if key is not None:
        tests.append(lambda message: message.key == key)
    if since is not None:
        start = since_time(since)
        tests.append(lambda message: message.time >= start)
    tests += map(_header, headers)
    tests += map(_condition, where)
    return tests


def checked_limit(limit: int) -> int:
    """A ``--limit``, if it can be one."""
    if limit < 1:
        raise InvalidOption(f"--limit cannot be {limit}", mend="a number, at least 1")
    return limit


def contains(text: str) -> Wanted:
    """Whether the body has a text in it, as UTF-8 or as JSON escapes it."""
    plain, escaped = text.encode("utf-8", "surrogateescape"), json.dumps(text)[1:-1].encode()
    return lambda message: plain in message.body or escaped in message.body


def anywhere(text: str) -> Wanted:
    """Whether a text is the message's id, key or a header's value, or in its body."""
    body = contains(text)

    def found(message: Message[Any]) -> bool:
        if text in (message.id, message.key, message.correlation_id, message.causation_id):
            return True
        return any(value == text for _, value in message.headers or ()) or body(message)

    return found


def _header(option: str) -> Wanted:
    name, equals, value = option.partition("=")
    if not name:
        raise InvalidOption(f"--header cannot be {option!r}", mend="NAME=VALUE, or NAME for any value")
    if equals:
        return lambda message: (name, value) in (message.headers or ())
    return lambda message: any(known == name for known, _ in message.headers or ())


def _condition(option: str) -> Wanted:
    parsed = CONDITION.fullmatch(option)
    if parsed is None:
        mend = "a field of the body, an operator (= != > >= < <= ~) and a value: total>=100, customer.name=Ann"
        raise InvalidOption(f"--where cannot be {option!r}", mend=mend)
    path, sign, text = parsed[1].split("."), parsed[2], parsed[3]
    compare, value = COMPARED[sign], _value(text)

    def says(message: Message[Any]) -> bool:
        try:
            found = _field(msgspec.json.decode(message.body), path)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if found is ABSENT:
            return False
        if sign == "~":
            return text in (found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))
        if isinstance(found, str):
            return compare(found, value if isinstance(value, str) else text)
        if _kind(found) is not _kind(value):
            return sign == "!="
        return compare(found, value) if sign in ("=", "!=") or isinstance(value, int | float) else False

    return says


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeError):
        return text


def _kind(value: Any) -> type:
    """True is no 1, but 1.0 is 1."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _field(body: Any, path: Sequence[str]) -> Any:
    for name in path:
        if isinstance(body, dict):
            body = body.get(name, ABSENT)
        elif isinstance(body, list) and name.isdigit() and int(name) < len(body):
            body = body[int(name)]
        else:
            return ABSENT
    return body
