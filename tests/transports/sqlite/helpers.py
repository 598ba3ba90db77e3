"""Small helpers: a bus in a folder, conditions with deadlines, steps on a bare connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery, Event, Subscription
from tidings.transports.sqlite import SQLite, connect
from tidings.transports.sqlite.claims import Claims
from tidings.transports.sqlite.log import Log
from tidings.transports.sqlite.transport import SQLiteTransport


@contextlib.asynccontextmanager
async def bus(folder: Path, told: list[Event] | None = None, **options: Any) -> AsyncIterator[SQLiteTransport]:
    transport = SQLite(path=str(folder / "bus.db"), **options).transport()
    await transport.open((told if told is not None else []).append)
    try:
        yield transport
    finally:
        await transport.close()


def group(pattern: str = "orders.>", name: str = "shop.bill", **more: Any) -> Subscription:
    return Subscription(app="shop", pattern=pattern, group=name, **more)


def message(n: int = 0, topic: str = "orders.placed", **more: Any) -> Message[Any]:
    return Message(topic, body=b"%d" % n, id=f"m{n}", time=time.time(), **more)


def bodies(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(d.message.body) for d in deliveries]


class Bench:
    """Members' steps on one connection and a clock of the test's own."""

    def __init__(
        self, path: Path, *, lease: float = 30.0, segment_rows: int = 1_000_000, max_size: int = 2**30
    ) -> None:
        self.path, self.lease, self.rows, self.size = path, lease, segment_rows, max_size
        self.con = connect(path)
        self.now = 1_000.0

    def member(self, kind: type[Claims] = Claims) -> Claims:
        log = Log(self.con, self.size, self.rows, 2**30)
        steps = kind(self.con, log, self.lease, 3600.0)
        self.do(steps, steps.join)
        return steps

    def do(self, steps: Claims, step: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """One step in a transaction of its own."""
        self.con.execute("BEGIN IMMEDIATE")
        try:
            steps.log.begin(self.now)
            steps.begin(self.now)
            result = step(*args, **more)
            steps.log.flush()
        except BaseException:
            self.con.execute("ROLLBACK")
            steps.log.reset()
            steps.reset()
            raise
        self.con.execute("COMMIT")
        for session in steps.lost:
            session.alive = False
        return result
