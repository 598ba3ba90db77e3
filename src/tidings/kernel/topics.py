"""Names: topics, patterns, captures.

A topic is dot-separated tokens of ``[A-Za-z0-9_%-]``. In a pattern ``*`` stands for one token and a last ``>`` for one
or more; ``{name}`` is a ``*`` whose token is captured. Topics that start with ``_`` are reserved (``RESERVED``): a
pattern whose first token is a wildcard does not match them.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from .errors import InvalidName

GROUP, DEAD, REQUEST, REPLY, TICK, INTERNAL = "_group.", "_dead.", "_request.", "_reply.", "_tick.", "_tidings."

TOKEN = re.compile(r"[A-Za-z0-9_%-]+")
CAPTURE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def token(text: str) -> str:
    """Any text as one token, percent-escaped and reversible (``token("a.b")`` is ``"a%2Eb"``). Refuses ``""``."""
    if not isinstance(text, str) or not text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidName(f"{text!r} cannot be a token", why="empty, or no whole text", mend="give it text")
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)


def untoken(text: str) -> str:
    """The text that ``token`` escaped."""
    return unquote(text)


def check_topic(name: str) -> str:
    """``name``, if messages can be published to it; a pattern or an invalid name raises ``InvalidName``."""
    if not isinstance(name, str) or not name or not all(map(TOKEN.fullmatch, name.split("."))):
        if any(part in ("*", ">") or "{" in part for part in str(name).split(".")):
            mend = "give every token: topic.bind(name=...) fills captures"
            raise InvalidName(f"{name!r} is a pattern: it cannot be published to", mend=mend)
        why = "a topic is dot-separated tokens of letters, digits, '_', '-' and '%'"
        raise InvalidName(f"{name!r} is no valid topic", why=why, mend=_mended(name))
    return name


def _mended(name: Any) -> str:
    parts = [token(part) for part in str(name).split(".") if part]
    return f"write {'.'.join(parts)!r}; tidings.token(text) escapes anything" if parts else "give it a name"


def check_pattern(name: str) -> str:
    """``name`` with captures turned into ``*``; raises ``InvalidName`` for what is no pattern."""
    pattern = CAPTURE.sub("*", name) if isinstance(name, str) else ""
    parts = pattern.split(".")
    valid = all(part == "*" or TOKEN.fullmatch(part) for part in parts[:-1])
    if not valid or not (parts[-1] in ("*", ">") or TOKEN.fullmatch(parts[-1])):
        why = "dot-separated tokens; '*' stands for one whole token, a last '>' for one or more"
        mqtt, plain = set("#+") & set(str(name)), re.sub(r"[>*{}]", "", str(name))
        mend = "MQTT's '+' and '#' are '*' and '>' here" if mqtt else _mended(plain)
        raise InvalidName(f"{name!r} is no valid pattern", why=why, mend=mend)
    return pattern


def refuse_reserved(name: str) -> str:
    """``name``, unless it is for our own use."""
    if name.startswith("_"):
        why = "topics that start with '_' belong to Tidings"
        raise InvalidName(f"{name!r} is reserved", why=why, mend=f"call it {name.lstrip('_')!r}")
    return name


def matches(pattern: str, topic: str) -> bool:
    """Whether ``topic`` is in ``pattern`` (captures already turned into ``*``)."""
    wanted, given = pattern.split("."), topic.split(".")
    if wanted[0] in ("*", ">") and topic.startswith("_"):
        return False
    fits = len(given) >= len(wanted) if wanted[-1] == ">" else len(given) == len(wanted)
    return fits and all(want in ("*", ">", have) for want, have in zip(wanted, given, strict=False))


def is_pattern(name: str) -> bool:
    """Whether a name may stand for several topics."""
    return "*" in name or name.endswith(">")


def captures(template: str) -> dict[str, int]:
    """Capture names and the index of their token."""
    found = {}
    for index, part in enumerate(template.split(".")):
        if capture := CAPTURE.fullmatch(part):
            if capture[1] in found:
                raise InvalidName(f"{template!r} captures {capture[1]!r} twice", mend="give each capture its own name")
            found[capture[1]] = index
    return found
