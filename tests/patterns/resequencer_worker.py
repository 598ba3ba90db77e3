"""A scenario of ``killing``: parts of streams go on in order.

What a dead process had in hand is handled one by one, while others go on: it may come very late.
"""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import resequencer


class Part(Struct):
    stream: str
    n: int
    text: str = ""


parts, ordered = Topic("parts", Part), Topic("ordered", Part)


def app(url: str) -> App:
    made = App("shop", url)
    resequencer(made, parts, to=ordered, by=lambda p: p.stream, number=lambda p: p.n, gap="1h", capacity=100_000)
    return made
