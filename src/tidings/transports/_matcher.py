"""Who listens to a topic: for transports that route by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Generic, TypeVar

V = TypeVar("V")


@lru_cache(1024)
def expression(pattern: str) -> re.Pattern[str]:
    """``topics.matches`` as a regular expression, to look through many thousand topics."""
    parts = [{"*": r"[^.]+", ">": r".+"}.get(part, re.escape(part)) for part in pattern.split(".")]
    return re.compile(("(?!_)" if pattern[0] in "*>" else "") + r"\.".join(parts))


class Matcher(Generic[V]):
    """Which values listen to a topic: a trie of patterns with a bounded cache in front."""

    def __init__(self) -> None:
        self._root: dict[str | None, Any] = {}
        self._known: dict[str, tuple[V, ...]] = {}

    def add(self, pattern: str, value: V) -> None:
        node = self._root
        for part in pattern.split("."):
            node = node.setdefault(part, {})
        node.setdefault(None, []).append(value)
        self._known.clear()

    def remove(self, pattern: str, value: V) -> None:
        node = self._root
        for part in pattern.split("."):
            node = node[part]
        node[None].remove(value)
        self._known.clear()

    def match(self, topic: str) -> tuple[V, ...]:
        """The values whose patterns match, in no particular order."""
        found = self._known.get(topic)
        if found is None:
            if len(self._known) >= 65_536:
                self._known.clear()
            found = self._known[topic] = tuple(self._walk(self._root, topic.split("."), topic.startswith("_")))
        return found

    def _walk(self, node: dict[str | None, Any], parts: list[str], literal: bool) -> Iterator[V]:
        if not parts:
            yield from node.get(None, ())
            return
        if not literal:
            yield from node.get(">", {}).get(None, ())
            if star := node.get("*"):
                yield from self._walk(star, parts[1:], False)
        if exact := node.get(parts[0]):
            yield from self._walk(exact, parts[1:], False)
