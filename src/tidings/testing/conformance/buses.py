"""The buses that come with Tidings, as the suite knows them: each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidings.kernel.message import new_id
from tidings.transports.memory import Memory

from .bus import Bus


def memory(folder: Path) -> Bus:
    name = new_id()

    def crash(transport: Any) -> None:
        transport.abandon()

    return Bus(options=lambda lease: Memory(name=name, lease=lease), virtual=True, crash=crash)


def sqlite(folder: Path) -> Bus:
    from tidings.transports.sqlite import SQLite

    path = folder / "bus.db"
    return Bus(
        options=lambda lease: SQLite(path=str(path), lease=lease), url=lambda lease: f"sqlite:///{path}?lease={lease}s"
    )


BUSES: dict[str, Callable[[Path], Bus]] = {"memory": memory, "sqlite": sqlite}
