"""EIP: Idempotent Receiver. A message that was handled is not handled again, whoever sends it twice.

That it was handled is a record, committed with all that the handler did: so there is no moment at which one is true and
the other is not. Works where handlers can keep records (``docs/guides/state.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tidings.keeping import Keeper
from tidings.kernel.errors import Defer, Duration, InvalidOption, Skip
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message, seconds
from tidings.kernel.transport import Delivery
from tidings.state import Table

__all__ = ["Dedup"]

SEEN = Table("_seen", float, expires=True)  # until when
UNSURE = 0.05  # seconds


class Dedup:
    """``@app.on(paid, middleware=[Dedup(window="7d")])``: each message once in ``window``; what comes again is skipped.

    ``key``: what makes a message the same, from the message as it travels: its body is not decoded (default: its
    ``id``). Groups do not share what they have seen. Raises ``InvalidOption``.
    """

    def __init__(self, *, window: Duration = "1d", key: Callable[[Message[Any]], str] | None = None) -> None:
        self.window, self.key = seconds(window, "window"), key or (lambda message: message.id)
        if not self.window or not callable(self.key):
            raise InvalidOption(f"Dedup(window={window!r}, key={key!r}) means nothing", mend='Dedup(window="1d")')

    def keeping(self, keeper: Keeper) -> _Seen:
        """The middleware around one handler."""
        return _Seen(self, keeper)

    def __call__(self, one: One) -> One:
        """Without records there is nothing to remember by."""
        raise InvalidOption("Dedup() goes into middleware=, not around a function", mend="middleware=[Dedup()]")


class _Seen:
    def __init__(self, dedup: Dedup, keeper: Keeper) -> None:
        self.dedup, self.keeper = dedup, keeper
        if keeper.foresee is not None:
            what, mend = f"{keeper.group} has two Dedup()", "one for the app, or one for the handler"
            raise InvalidOption(what, why="each would take the other's note for a repetition", mend=mend)
        keeper.expiring.add(SEEN.name)
        keeper.foresee = lambda deliveries: [(SEEN.name, self._name(delivery)) for delivery in deliveries]

    def _name(self, delivery: Delivery) -> str:
        return f"{self.keeper.group}/{self.dedup.key(delivery.message)}".replace("\0", " ")

    def __call__(self, one: One) -> One:
        keeper, window = self.keeper, self.dedup.window

        async def once(delivery: Delivery) -> Outgoing:
            state, name, now = keeper.state_of(delivery), self._name(delivery), keeper.clock.now()
            if (await state.get(SEEN, name) or 0.0) > now:
                if state.unsettled(SEEN, name):
                    raise Defer(UNSURE, "one like it is being handled, and may fail")
                raise Skip("it was handled before")
            state.put(SEEN, name, now + window, due=now + window)
            return await one(delivery)

        return once

    def many(self, many: Many) -> Many:
        """The same for a batch: only what is new in it, each once, reaches the handler."""

        async def once(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            state, now = self.keeper.state_of(deliveries[0]), self.keeper.clock.now()
            names, until = [self._name(delivery) for delivery in deliveries], now + self.dedup.window
            seen = {name for name, end in (await state.get_many(SEEN, names)).items() if end > now}
            unsure = Defer(UNSURE, "one like it is being handled, and may fail")
            outcomes: list[Outcome] = [
                unsure if state.unsettled(SEEN, name) else Skip("it was handled before") for name in names
            ]
            fresh = []
            for index, name in enumerate(names):
                if name not in seen:
                    seen.add(name)
                    fresh.append(index)
            handled = await many([deliveries[index] for index in fresh]) if fresh else ()
            for index, outcome in zip(fresh, handled, strict=True):
                outcomes[index] = outcome
                if not isinstance(outcome, BaseException):
                    state.put(SEEN, names[index], until, due=until)
            return outcomes

        return once
