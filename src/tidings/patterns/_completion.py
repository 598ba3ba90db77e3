"""When a group of messages is complete, and what becomes of what is not, or comes too late."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from ._options import choices, counts, durations, often


class Completion(Struct, frozen=True, kw_only=True):
    """Rules. Seconds; 0: never."""

    size: int = 0
    timeout: float = 0.0
    idle: float = 0.0
    partial: Literal["publish", "drop", "dead"] = "publish"
    late: Literal["new", "drop", "dead"] = "new"
    remember: float = 600.0

    @property
    def every(self) -> float:
        """How often to look for what is due."""
        waits = (wait for wait in (self.timeout, self.idle) if wait)
        return often(min(waits, default=10.0))

    def due(self, since: float, now: float) -> float | None:
        """When a group is over that began ``since`` and got a message now, if nothing more comes."""
        times = (self.timeout and since + self.timeout, self.idle and now + self.idle)
        return min(filter(None, times), default=None)


def completion(given: dict[str, Any]) -> Completion:
    """Take the rules out of the options of a pattern. Raises ``InvalidOption``."""
    rules = {name: given.pop(name) for name in Completion.__struct_fields__ if name in given}
    durations(rules, "timeout", "idle", "remember")
    counts(rules, "size")
    choices(rules, partial=("publish", "drop", "dead"), late=("new", "drop", "dead"))
    return Completion(**rules)
