"""Debouncing to be killed: ``app(url)`` for ``tests.patterns.killing``."""

from __future__ import annotations

from tidings import App, Topic
from tidings.patterns import debounce

edits, settled = Topic("edits", int), Topic("settled", int)


def app(url: str) -> App:
    made = App("pad", url)
    debounce(made, edits, to=settled, quiet="300ms", every="50ms")
    return made
