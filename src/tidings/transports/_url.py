"""A broker's URL: where it is, who asks, and the options of its transport."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Struct, structs

from tidings.kernel.errors import Duration, InvalidOption, InvalidURL, nearest
from tidings.kernel.message import seconds

OptionsT = TypeVar("OptionsT", bound=Struct)

SEED = re.compile("S[ACNOUX][A-Z2-7]{40,}")  # of an NKey, or most of one: it has 58 characters


class Location(Struct, frozen=True):
    """What stands before the ``?`` of a URL; user, password and path are unquoted."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str
    path: str  # without its leading slash
    query: Mapping[str, str]


def locate(url: str, port: int) -> Location:
    """The parts of ``scheme://user:password@host:port,host2/path?option=value``; ``port`` where none is given.

    Raises ``InvalidURL``, which never shows the password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # which may quote the password
        mend = "percent-encode it: %5B, %5D; an IPv6 address is [::1]"
        raise InvalidURL(
            "the user, the password or the host has a [ or ] in it, or what no URL has", mend=mend
        ) from None
    login, at, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if not at and ("@" in url.partition("?")[0] or "@" in parts.query.partition("=")[0]):
        raise InvalidURL("the user or the password has a /, ? or # in it", mend="percent-encode it: %2F, %3F, %23")
    hosts = tuple(_host(place, port, parts.scheme) for place in places.split(",") if place)
    if at and not user and not password:
        raise InvalidURL(f"{shown(url)!r} has an @ and no user", mend="scheme://user:password@host")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Location(parts.scheme, hosts, unquote(user), unquote(password), unquote(parts.path[1:]), query)


def _host(place: str, port: int, scheme: str) -> tuple[str, int]:
    name, colon, number = place.rpartition(":")
    if place.endswith("]") or not colon:  # [::1], or a name alone
        name, number = place, str(port)
    if not name or not number.isdigit() or not 0 < int(number) < 65_536:
        raise InvalidURL(f"{place!r} is no host and port", mend=f"{scheme}://localhost:{port}")
    return name.strip("[]"), int(number)


def shown(url: str) -> str:
    """A URL as it may be logged: without its password, and without a token or a seed that stands for one."""
    place, mark, query = url.partition("?")
    before, at, after = place.rpartition("@")
    scheme, separator, login = before.partition("://")
    query = re.sub(r"(?i)((?:^|&)[^=&]*(?:password|token)[^=&]*=)[^&]*", r"\1***", query)
    user, colon, _ = login.partition(":")
    if scheme.startswith("nats") and at and not colon:  # a user alone is a token
        user = "***"
    return SEED.sub("***", f"{scheme}{separator}{user}{at}{after}{mark}{query}")


def hidden(options: Struct) -> str:
    """The ``repr`` of options, as it may be logged: no password, and no token or seed that stands for one."""
    told = structs.asdict(options)
    secret = {"password", "client"} if told.get("password") or "password" not in told else {"user", "client"}
    for name, value in told.items():
        if value and (name in secret or "password" in name):
            told[name] = "***"
        elif isinstance(value, str):
            told[name] = shown(value) if "://" in value else SEED.sub("***", value)
    return f"{type(options).__name__}({', '.join(f'{name}={value!r}' for name, value in told.items())})"


def fill(kind: type[OptionsT], url: str, query: Mapping[str, str], **given: Any) -> OptionsT:
    """Options from a URL's query and what the URL says otherwise.

    Every field of ``kind`` that is not ``given`` is an option by its own name. Raises ``InvalidURL``, naming an unknown
    option and the nearest known one.
    """
    hints = get_type_hints(kind)
    known = [name for name in kind.__struct_fields__ if name not in given]
    for name in query:
        if name not in known:
            what, why = f"{kind.__name__} has no option {name!r}", f"it has {', '.join(known)}"
            raise InvalidURL(what, why=why, mend=nearest(name, known))
    try:
        return kind(**given, **{name: _value(name, text, hints[name]) for name, text in query.items()})
    except (InvalidOption, TypeError) as error:
        raise InvalidURL(f"{shown(url)!r}: {getattr(error, 'what', error)}", mend=getattr(error, "mend", "")) from None


def _value(name: str, text: str, hint: Any) -> Any:
    if hint == Duration:
        seconds(text, name)
        return text
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidOption(f"{name} cannot be {text!r}", why=str(error), mend=f"{name}=…, as its type says") from None
