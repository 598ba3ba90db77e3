"""Who may do what: rights by topic pattern, and those who have them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from tidings.kernel.topics import check_pattern

from .refusals import Forbidden

Action = Literal["publish", "subscribe", "group", "request"]


class Rights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody may do; each a list of patterns, and nothing that is not listed.

    ``publish``, ``subscribe``: topics. ``group``: the names of groups that may be joined, so a stranger cannot take an
    app's messages. ``request``: services. ``admin``: the operator's page and metrics. ``member``: everything an app of
    ours can do on the bus, reserved topics too (what ``grpc://`` needs).
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    admin: bool = False
    member: bool = False

    def __post_init__(self) -> None:
        for pattern in (*self.publish, *self.subscribe, *self.group, *self.request):
            check_pattern(pattern)


ALL = (">",)
EVERYTHING = Rights(publish=ALL, subscribe=ALL, group=ALL, request=ALL, admin=True, member=True)


class Principal(Struct, frozen=True):
    """Somebody who asks: a name for the log, and rights."""

    name: str
    rights: Rights

    def need(self, action: Action, name: str) -> None:
        """Raises ``Forbidden`` unless this may be done with all that ``name``, a topic or a pattern, stands for."""
        allowed: tuple[str, ...] = getattr(self.rights, action)
        if not any(covers(pattern, name) for pattern in allowed):
            listed = ", ".join(allowed) or "nothing"
            why = f"its right to {action} is for {listed}"
            mend = f"add {name!r} to `{action}` of {self.name!r}, where its rights are written"
            raise Forbidden(f"{self.name!r} may not {action} {name!r}", why=why, mend=mend)

    def need_all_of(self, right: Literal["admin", "member"]) -> None:
        """Raises ``Forbidden`` without this right."""
        if not getattr(self.rights, right):
            mend = f"set `{right} = true` where its rights are written"
            raise Forbidden(f"{self.name!r} has no right {right!r}", mend=mend)


ANYONE = Principal("anyone", EVERYTHING)


def covers(allowed: str, asked: str) -> bool:
    """Whether every topic of the pattern ``asked`` is in the pattern ``allowed``."""
    wide, narrow = allowed.split("."), asked.split(".")
    if wide[0] in ("*", ">") and narrow[0].startswith("_"):
        return False
    if wide[-1] == ">":
        wide = wide[:-1]
        if len(narrow) <= len(wide):
            return False
        narrow = narrow[: len(wide)]
    elif len(wide) != len(narrow):
        return False
    return all(a == b or (a == "*" and b != ">") for a, b in zip(wide, narrow, strict=True))
