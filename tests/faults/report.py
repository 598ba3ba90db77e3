"""What a nemesis saw: one row of the table in ``docs/reliability.md``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from msgspec import Struct


class Seen(Struct, kw_only=True):
    """Over all rounds of one nemesis. ``evidence``: what shows that the fault took place."""

    rounds: int
    accepted: int  # publishes the bus accepted
    lost: int  # of those: never handled by some group
    duplicated: int = 0
    bound: int = 0  # duplicates that the rules allow
    disorder: int = 0  # violations of key order
    recovered: float | None = None  # seconds until the slowest round went on
    evidence: str = ""
    faults: list[str] = []  # anything else that is wrong; msgspec copies it
    note: str = ""

    @property
    def verdict(self) -> Literal["held", "broken", "inconclusive"]:
        if self.lost or self.disorder or self.faults or self.duplicated > self.bound:
            return "broken"
        return "held" if self.evidence and self.accepted and self.rounds else "inconclusive"


Attack = Callable[[Path, int, int], Awaitable[Seen]]
"""(empty folder, seed, rounds) to what was seen."""


class Entry(Struct, frozen=True):
    """A fault, by the name it has in the table. ``quick`` and ``full``: rounds in ``make test`` and ``make faults``."""

    name: str
    what: str  # one sentence for the table
    attack: Attack
    quick: int
    full: int


NEMESES: dict[str, Entry] = {}


def nemesis(name: str, what: str, *, quick: int = 1, full: int = 5) -> Callable[[Attack], Attack]:
    """Register a coroutine function as a nemesis."""

    def register(attack: Attack) -> Attack:
        NEMESES[name] = Entry(name, what, attack, quick, full)
        return attack

    return register
