"""How a poller waits while what it polls cannot answer: longer each time, and not at all once it can."""

from __future__ import annotations

import logging
from time import monotonic

from tidings.kernel.errors import text_of

log = logging.getLogger("tidings")

FIRST, MOST = 1.0, 60.0  # seconds


class Patience:
    """Of one poller; ``name`` is what its warnings call it."""

    def __init__(self, name: str) -> None:
        self.name, self._pause, self._until = name, FIRST, 0.0

    @property
    def waits(self) -> bool:
        """Whether it is too early to ask again."""
        return monotonic() < self._until

    def failed(self, error: BaseException, least: float = 0.0) -> None:
        """It could not answer, and wants to be left alone for ``least`` seconds."""
        pause = max(self._pause, least)
        log.warning(
            "%s got no answer, trying again in %g s: %s: %s", self.name, pause, type(error).__name__, text_of(error)
        )
        self._until, self._pause = monotonic() + pause, min(2 * self._pause, MOST)

    def answered(self) -> None:
        self._pause = FIRST
