"""The raw client of an engine as a peer, on a server that syncs what it accepts, and does nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .. import servers
from ..engines import works

T = TypeVar("T")


def served(engine: str, raw: type[works.Library], work: Callable[..., Coroutine[Any, Any, T]], *given: Any) -> T:
    """What the work yields."""
    with servers.synced(engine) as url:
        return asyncio.run(work(raw(url, works.place()), *given))
