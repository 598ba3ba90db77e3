"""The two clocks: the wall clock for what users see, the monotonic one for waiting and leases.

A running event loop may bring its own (``tidings.testing.VirtualLoop`` does); everything that opens on that loop keeps
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct


class Clock(Struct, frozen=True):
    """``now()``: Unix seconds. ``monotonic()``: seconds that never step, comparable to the loop's ``time()``."""

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


SYSTEM = Clock()


def current_clock() -> Clock:
    """The running loop's clock."""
    return getattr(asyncio.get_running_loop(), "clock", SYSTEM)
