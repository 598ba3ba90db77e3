"""The buses that come with Tidings, as the suite knows them: each in a folder or a namespace of its own."""

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


def served(url: str) -> Bus:
    """A fresh bus on the server at ``url``: in a namespace of its own."""
    from tidings.urls import options_for

    fresh = f"{url}{'&' if '?' in url else '?'}namespace=t{new_id().replace('-', '')[-12:]}"

    def leased(lease: float) -> str:
        return f"{fresh}&lease={lease}s"

    async def lose(transport: Any) -> None:
        await transport.client.close()

    return Bus(options=lambda lease: options_for(leased(lease)), url=leased, lose=lose, orphaned=2.0, patience=2.0)


BUSES: dict[str, Callable[[Path], Bus]] = {"memory": memory, "sqlite": sqlite}
