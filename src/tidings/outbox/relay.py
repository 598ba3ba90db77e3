"""The relay: rows become messages of the app's bus, in order, and are removed once it has accepted them.

A *turn* takes rows, publishes them and removes them, while no other relay of this table does; it ends before its app
does. A *session* is one connection, for as long as nothing breaks and nothing is held back. All of them are one tick of
the app, which ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tidings.kernel.errors import InvalidOption, TidingsError, text_of
from tidings.kernel.topics import token
from tidings.patterns._pattern import describe
from tidings.urls import options_for

from .publishing import publish
from .rows import Table, Taken

if TYPE_CHECKING:
    from tidings.app import App

log = logging.getLogger("tidings")

SESSION, HOLD = 60.0, 2.0  # seconds; the next session tries again what was held back, so this one ends before
SHORTEST = 0.005  # seconds between two looks at an empty table, at first
PAUSE, LONGEST = 0.5, 15.0  # seconds after a failure, at first and at most


class Turn(Protocol):
    """Rows that nobody else takes until it is over."""

    rows: Sequence[Taken]

    async def finish(self, accepted: Sequence[int], refused: Sequence[tuple[int, str]]) -> None:
        """Remove the rows at these positions, and set those aside."""


class Rows(Protocol):
    """An outbox's table, on a connection of its own while it is entered."""

    async def __aenter__(self) -> Rows: ...
    async def __aexit__(self, *exc: object) -> None: ...
    async def create(self) -> None: ...
    async def count(self, *, refused: bool) -> int: ...
    async def retry(self) -> int: ...
    def turn(self, limit: int, held: Collection[str]) -> AbstractAsyncContextManager[Turn | None]:
        """Up to ``limit`` of the first rows, without the lanes that are ``held``; None: it is another's turn."""

    async def news(self, patience: float) -> None:
        """Wait so long, or until told of a commit."""


class Relay:
    """One app's relay of one table; ``opened`` makes its connection."""

    def __init__(self, table: Table, opened: Callable[[], Rows], app: App, bus: str, batch: int, poll: float) -> None:
        self.table, self.opened, self.app, self.bus, self.batch, self.poll = table, opened, app, bus, batch, poll
        self.pause = PAUSE

    def attach(self) -> None:
        """Run it on every replica while the app runs."""
        for given in self.app.urls.values():
            self._refuse_bus_file(options_for(given) if isinstance(given, str) else given)
        self.opened()  # is its driver there?
        name = f"outbox-{token(Path(self.table.place.shown).stem)}-{self.table.name.replace('.', '-')}"

        async def relaying() -> None:
            while len(self.app.stats()) < sum(not each.each for each in self.app.registrations):  # noqa: ASYNC110
                await asyncio.sleep(SHORTEST)  # a group that is not there yet would miss what is published now
            while True:
                await self.session()

        described = describe(relaying, "transactional client")
        self.app.every("50ms", each=True, bus=self.bus, group=f"{self.app.name}.{name}")(described)

    def _refuse_bus_file(self, options: Any) -> None:
        file = getattr(options, "file", None)  # the embedded bus has one
        if callable(file) and self.table.place.kind == "sqlite" and _same_file(file(), Path(self.table.place.dsn)):
            raise InvalidOption(
                f"the outbox's file {self.table.place.shown} is a bus of {self.app.name!r}",
                why="a second SQLite build on it may damage it; your tables belong in a file of your own",
                mend='App("shop", "sqlite:///shop.db") beside Outbox("sqlite:///app.db")',
            )

    async def session(self) -> None:
        """Move rows for a while; what fails is told, and tried again by the next session."""
        loop = asyncio.get_running_loop()
        end, wait, held = loop.time() + SESSION, SHORTEST, set[str]()
        try:
            for name in self.app.urls:  # as they are now: TIDINGS_URL may have said otherwise
                self._refuse_bus_file(getattr(self.app.bus(name), "options", None))
            async with self.opened() as rows:
                while (left := end - loop.time()) > 0:
                    if await _whole(self._move(rows, held)):
                        wait, self.pause = SHORTEST, PAUSE
                    else:
                        await rows.news(min(wait, left))
                        wait = min(2 * wait, max(self.poll, SHORTEST))
                    if held:
                        end = min(end, loop.time() + HOLD)
        except Exception as error:
            log.warning("outbox %s waits %g s: %s", self.table.name, self.pause, _told(error))
            await asyncio.sleep(self.pause)
            self.pause = min(2 * self.pause, LONGEST)

    async def _move(self, rows: Rows, held: set[str]) -> int:
        """One turn; how many rows it has done with. Raises what keeps the whole bus from accepting."""
        async with rows.turn(self.batch, held) as turn:
            if turn is None or not turn.rows:
                return 0
            done = await publish(self.app, self.bus, turn.rows)
            await turn.finish(done.accepted, done.refused)
        for _, why in done.refused:
            log.error("outbox %s sets a message aside: %s", self.table.name, why)
        if done.error is not None and done.down:
            raise done.error
        if done.error is not None:
            log.warning("outbox %s holds %d keys back: %s", self.table.name, len(done.held), done.error)
        held |= done.held
        return done.count


async def _whole(work: Coroutine[Any, Any, int]) -> int:
    """Work that is not left in the middle when the app ends: what was published then would be published again.

    In a context of its own: whatever traces this tick is not the cause of these messages.
    """
    task = asyncio.get_running_loop().create_task(work, context=Context())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if (error := task.exception()) is not None:
            log.warning("an outbox's last turn: %s", _told(error))
        raise


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, TidingsError) else f"{type(error).__name__}: {text_of(error)}"
