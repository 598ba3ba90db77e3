"""Sorting more records than memory should hold: sorted runs on disk, merged."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import chain, islice
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])

RUN, PIECE = 200_000, 250  # records in memory; records that are written and read at once


def ordered(items: Iterable[T]) -> Iterator[T]:
    """All of them, sorted; at most ``RUN`` in memory, the rest in a temporary file without a name."""
    given = iter(items)
    run = sorted(islice(given, RUN))
    if len(run) < RUN:
        yield from run
        return
    with ExitStack() as files:
        runs = list[Iterator[T]]()
        while run:
            file = files.enter_context(TemporaryFile())
            for first in range(0, len(run), PIECE):
                put(file, run[first : first + PIECE])
            file.seek(0)
            runs.append(chain.from_iterable(pieces(file)))
            run = sorted(islice(given, RUN))
        yield from merge(*runs)


def put(file: IO[bytes], piece: Any) -> None:
    """Write something that ``pieces`` reads again."""
    data = marshal.dumps(piece)
    file.write(len(data).to_bytes(4))
    file.write(data)


def pieces(file: IO[bytes]) -> Iterator[Any]:
    """What was ``put`` into a file, until there is no more."""
    while len(head := file.read(4)) == 4:
        yield marshal.loads(file.read(int.from_bytes(head)))
