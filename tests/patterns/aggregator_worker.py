"""A scenario of ``killing``: lines become orders, by size, by a predicate on a total, and by time."""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Topic
from tidings.patterns import aggregator

SIZE = 7


class Line(Struct):
    order: str
    n: int
    text: str = ""


class Whole(Struct):
    order: str
    numbers: list[int]


class Seen(Struct):
    order: str
    numbers: list[int]


lines, wholes, seens, idles = (
    Topic("lines", Line),
    Topic("wholes", Whole),
    Topic("seens", Seen),
    Topic("idles", Whole),
)


def see(seen: Seen | None, line: Line) -> Seen:
    """Whatever comes twice counts once."""
    return Seen(line.order, sorted({line.n, *(seen.numbers if seen else ())}))


def app(url: str) -> App:
    made = App("shop", url)

    @aggregator(made, lines, by=lambda line: line.order, size=SIZE, late="drop", to=wholes)
    def whole(collected: list[Line]) -> Whole:
        return Whole(collected[0].order, [line.n for line in collected])

    @aggregator(made, lines, by=lambda line: line.order, fold=see, until=lambda s: len(s.numbers) == SIZE, to=seens)
    def seen(found: Seen) -> Seen:
        return found

    @aggregator(made, lines, by=lambda line: line.order, idle="300ms", to=idles)
    def rested(collected: list[Line]) -> Whole:
        return Whole(collected[0].order, [line.n for line in collected])

    return made
