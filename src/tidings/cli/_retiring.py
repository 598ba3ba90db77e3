"""Whether a group may be dropped without loss."""

from __future__ import annotations

from collections.abc import Sequence

from tidings import App
from tidings.assembly import group_of
from tidings.kernel.errors import BusError, InvalidOption
from tidings.kernel.transport import GroupInfo

from ._looks import unsettled


def check_retired(group: GroupInfo, groups: Sequence[GroupInfo], code: App | None) -> None:
    """Raises unless no handler has the group any more, as its app's code or its running processes tell, and nothing
    waits for it."""
    at_rest(group)
    if code is not None:
        _refuse_handler(group, code)
    elif not any(other.members for other in groups if other.app == group.app):
        raise InvalidOption(
            f"who knows whether a handler still has {group.name}?",
            why=f"no process of {group.app or 'its app'} is running, so nothing shows that this one is gone",
            mend="--app module:app looks into its code; or retire it while the app runs",
        )
    if waiting := unsettled(group):
        heirs = [other.name for other in groups if _may_inherit(other, group)]
        mend = f"`tidings groups rename {group.name} NEW` keeps them; `tidings groups drop {group.name}` gives them up"
        if heirs:
            mend += f"; if it is {heirs[0]} now: that one must be dropped before the rename"
        raise InvalidOption(
            f"{waiting:,} message{'s wait' if waiting > 1 else ' waits'} for {group.name}",
            why="once it is gone nobody handles them",
            mend=mend,
        )


def at_rest(group: GroupInfo) -> None:
    """Raises ``BusError`` for a group that somebody runs."""
    if group.members:
        raise BusError(
            f"group {group.name!r} has members at work",
            why=f"{group.members} process{'es run' if group.members > 1 else ' runs'} its handler",
            mend="stop the app that consumes it",
        )


def _refuse_handler(group: GroupInfo, code: App) -> None:
    if group.app and group.app != code.name:
        what = f"{group.name} is a group of {group.app}, and this is the code of {code.name}"
        raise InvalidOption(what, mend=f"--app module:app of {group.app}")
    for registration in code.registrations:
        if not registration.live and group_of(registration, code.name) == group.name:
            raise InvalidOption(
                f"{group.name} has a handler",
                why=f"{registration.fn.__qualname__}() at {registration.where}",
                mend="remove or rename the function first",
            )


def _may_inherit(other: GroupInfo, group: GroupInfo) -> bool:
    return other.name != group.name and (other.app, other.pattern) == (group.app, group.pattern)
