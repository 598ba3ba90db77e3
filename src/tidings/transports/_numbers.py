"""Sets of numbers as small values, for transports that keep claims in a database."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise


def bits(slots: Iterable[int]) -> int:
    """A bit mask, as a database's signed integer."""
    mask = sum(1 << slot for slot in slots)
    return mask - 2**64 if mask >= 2**63 else mask


def pack(numbers: Sequence[int]) -> bytes:
    """Rising numbers, delta-coded: the first, then bytes, or words where a gap is large."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:  # none is missing
        return struct.pack(">Qc", numbers[0], b"B") + b"\1" * (len(numbers) - 1)
    gaps = [b - a for a, b in pairwise(numbers)]
    wide = max(gaps, default=0)
    code = "B" if wide < 256 else "I" if wide < 2**32 else "Q"
    return struct.pack(">Qc", numbers[0], code.encode()) + array(code, gaps).tobytes()


def unpack(todo: bytes) -> list[int]:
    """The numbers that ``pack`` packed."""
    first, code = struct.unpack_from(">Qc", todo)
    return list(accumulate(array(code.decode(), todo[9:]), initial=first))
