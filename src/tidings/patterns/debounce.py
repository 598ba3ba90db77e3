"""Of a burst of messages of one key only the last is passed on, after a quiet time (beyond the book: Debounce).

    debounce(app, edits, to=settled, quiet="2s", at_most="1m")

What waits is a record, with the time it is due at: no timer each, and none is lost with a process. The last of a burst
is passed on once, in one transaction with the removal of its record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import token
from tidings.router import Router
from tidings.state import State, Table
from tidings.timers import due

from ._forward import forwarded, named, one_topic
from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

T = TypeVar("T")

BATCH = 256  # messages at once


class Held(Struct, frozen=True):
    """The last message of a burst so far, as it will be passed on; when it was published, and when its burst began."""

    message: Message[Any]
    time: float
    began: float


def debounce(
    app: Router,
    source: Topic[T],
    /,
    *,
    to: Topic[T],
    quiet: Duration,
    at_most: Duration | None = None,
    every: Duration = 0.1,
    **options: Unpack[Durable],
) -> None:
    """Pass the last message of each key on when no other has come for ``quiet``; those without a key are one key.

    ``at_most``: a burst that goes on for longer is passed on all the same (default: it waits for its end). The last is
    the one that was published last. ``every``: how often to look for what is due. Body, key, headers and expiration
    stay as they are. Its group is called after the source unless ``group`` is given; ``options`` as of ``app.on``.

    Raises ``InvalidOption``; at start-up ``Unsupported`` if no bus of the app keeps records.
    """
    rest, longest = seconds(quiet, "quiet"), float("inf") if at_most is None else seconds(at_most, "at_most")
    if longest < rest:
        raise InvalidOption(
            f"at_most={at_most!r} is shorter than quiet={quiet!r}", mend="let it be longer, or leave it out"
        )
    table = Table(f"_debounced.{token(source.template)}.{one_topic(to, 'to').name}", Held)

    async def debounced(messages: list[Message[Any]], state: State) -> None:
        now = current_clock().now()
        newest = {f"={m.key}" if m.key is not None else "": m for m in sorted(messages, key=lambda m: m.time)}
        known = await state.get_many(table, newest)
        for key, message in newest.items():
            held, before = Held(forwarded(message, to, table.name), message.time, now), known.get(key)
            if before is not None:
                last = held if held.time >= before.time else before
                held = Held(last.message, last.time, before.began)
            state.put(table, key, held, due=min(now + rest, held.began + longest))

    async def passed_on(key: str, held: Held, state: State) -> Message[Any]:
        return held.message

    on: Any = app.on
    handler = describe(named(debounced, "debounce", source), "debounce", publishes=(to,))
    on(source, batch=BATCH, **{"concurrency": 1, **options})(handler)
    look = describe(named(passed_on, "debounce", source), "debounce", publishes=(to,))
    due(app, table, every=every, bus=source.bus)(look)
