"""The book of every delivery: what was accepted must be handled, once, in order, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from tidings.kernel.message import Message


class Entry(Struct, frozen=True):
    """One line: a handler of ``group`` began, ended, or failed with a message."""

    what: str  # begin | end | fail
    group: str
    id: str
    attempt: int = 1
    key: str | None = None
    member: str = ""


class Ledger:
    """Counts every delivery of a test: ``accept`` what the bus took; ``begin`` and ``end`` (or ``fail``) handlings."""

    def __init__(self) -> None:
        self.accepted: dict[str, str | None] = {}  # id to key, in order
        self.entries: list[Entry] = []
        self.done: dict[str, set[str]] = {}  # by group

    def accept(self, messages: Iterable[Message[Any]]) -> None:
        self.accepted.update((message.id, message.key) for message in messages)

    def begin(self, group: str, message: Message[Any], attempt: int = 1, member: str = "") -> None:
        self.entries.append(Entry("begin", group, message.id, attempt, message.key, member))

    def end(self, group: str, message: Message[Any], attempt: int = 1, member: str = "") -> None:
        self.done.setdefault(group, set()).add(message.id)
        self.entries.append(Entry("end", group, message.id, attempt, message.key, member))

    def fail(self, group: str, message: Message[Any], attempt: int = 1, member: str = "") -> None:
        self.entries.append(Entry("fail", group, message.id, attempt, message.key, member))

    def handled(self, group: str) -> Counter[str]:
        """How often each message was handled to the end."""
        return Counter(entry.id for entry in self.entries if entry.group == group and entry.what == "end")

    def complete(self, *groups: str) -> bool:
        """Whether every group has handled all that was accepted."""
        wanted = len(self.accepted)
        return all(len(self.done.get(group, ())) >= wanted for group in groups)

    def check(self, *groups: str, duplicates: int = 0) -> None:
        """Every accepted message was handled by each group; at most ``duplicates`` were repeated; nothing else came."""
        for group in groups:
            handled = self.handled(group)
            lost = self.accepted.keys() - handled.keys()
            alien = handled.keys() - self.accepted.keys()
            repeated = sum(handled.values()) - len(handled)
            assert not lost, (
                f"{group}: {len(lost)} of {len(self.accepted)} accepted messages were never handled: {_some(lost)}"
            )
            assert not alien, f"{group}: {len(alien)} messages were handled that nobody published: {_some(alien)}"
            assert repeated <= duplicates, f"{group}: {repeated} duplicates, allowed are {duplicates}"

    def check_order(self, group: str, *, members: int = 1) -> None:
        """Each key in the order of acceptance and one at a time, while several keys were in flight at once (evidence),
        over at least ``members`` members."""
        ranks = {id: rank for rank, id in enumerate(self.accepted)}
        last: dict[str, int] = {}
        busy: dict[str, str] = {}
        most, seen = 0, set()
        for entry in self.entries:
            if entry.group != group or entry.key is None:
                continue
            seen.add(entry.member)
            if entry.what == "begin":
                rank, before = ranks[entry.id], last.get(entry.key, -1)
                assert entry.key not in busy, f"{entry.key}: {entry.id} began while {busy[entry.key]} was in flight"
                assert rank >= before, f"{entry.key}: message {rank} came after message {before}"
                last[entry.key] = rank
                busy[entry.key] = entry.id
                most = max(most, len(busy))
            else:
                busy.pop(entry.key, None)
        assert most > 1, "inconclusive: never were two keys in flight at once"
        assert len(seen) >= members, f"inconclusive: only {len(seen)} of {members} members had work"


def _some(ids: Iterable[str]) -> str:
    return ", ".join(sorted(ids)[:3])
