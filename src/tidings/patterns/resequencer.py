"""Numbered messages that came in any order go on in order (EIP: Resequencer).

    resequencer(app, parts, to=ordered, by=lambda part: part.sender, number=lambda part: part.n, gap="10s")

Per stream – ``by`` says which – a message goes on when all before it have gone. Until then it waits in a record, so no
crash loses it or its place. A number that does not come within ``gap`` is given up, or when ``capacity`` messages wait
for it; the next message that goes on says so in its header ``sequence-gap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.channels import Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import Message
from tidings.router import Router
from tidings.state import State, Table
from tidings.timers import due

from ._forward import named, one_topic
from ._options import choices, counts, durations, functions, group_of, often, refuse_unknown
from ._pattern import describe
from ._resequencing import HEADER, Resequencing

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._aggregates import Gaps

__all__ = ["HEADER", "resequencer"]

T = TypeVar("T")

BATCH = 1024  # messages in a transaction
PASSED = ("backoff", "breaker")  # to app.on, and ``begin`` as its ``start``
RULES = ("start", "capacity", "gap", "forget", "missing", "late")


def resequencer(
    app: Router,
    source: Topic[T],
    /,
    *,
    to: Topic[T],
    by: Callable[[T], str] | None = None,
    number: Callable[[T], int] | None = None,
    **options: Unpack[Gaps],
) -> None:
    """Publish to ``to`` what comes from ``source``, each stream in the order of its numbers.

    ``by`` and ``number``: of a payload; without them, streams are message sequences (EIP). ``start``: the first number
    of a stream (0). A message goes on as it is, but with its stream as key, so that its handlers keep the order, and
    without a priority, by which it would overtake others.

    ``gap``: how long to wait for a number (10 s); ``capacity``: how many may wait for it (1,000). Then it is given up,
    and what waits goes on; with ``missing="dead"`` what waited until the next gap goes to the dead letters when the
    time is over. What comes twice is dropped, and so is a number that was given up: ``late="dead"`` sends all that is
    below the next number to the dead letters. ``forget``: a stream to which nothing came for so long (1 day) begins
    anew. ``group``: names the subscription and the records (``"<app>.resequencer_<source>"``). ``backoff``,
    ``breaker``: as in ``app.on``.

    Raises ``InvalidOption``, ``InvalidName``.
    """
    given: dict[str, Any] = dict(options)
    if not isinstance(source, Topic):
        raise InvalidOption(f"a resequencer cannot listen to {source!r}", mend='a topic: Topic("parts", Part)')
    one_topic(to, "to")
    functions(by=by, number=number)
    if (by is None) != (number is None):
        mend = "two functions of a payload; or neither, for message sequences"
        raise InvalidOption("by= and number= belong together", mend=mend)
    refuse_unknown(given, (*RULES, *PASSED, "group"), "a resequencer")
    durations(given, "gap", "forget")
    counts(given, "capacity")
    counts(given, "start", least=-(2**62))
    choices(given, missing=("skip", "dead"), late=("drop", "dead"))
    passed = {name: given.pop(name) for name in PASSED if name in given}

    async def collect(messages: list[Message[Any]], state: State) -> list[Message[Any]]:
        return await found.collect(messages, state)

    async def fired(key: str, record: bytes, state: State) -> list[Message[Any]]:
        return await found.fired(key, record, state)

    named(collect, "resequencer", source)
    fired.__name__ = fired.__qualname__ = collect.__name__
    describe(fired, "resequencer", publishes=(to,))
    group = group_of(app, collect, given.pop("group", ""))
    tables: Any = {name: Table(f"{group}.{name}", bytes) for name in ("streams", "waiting")}
    found = Resequencing(to=to, group=group, by=by, number=number, **given, **tables)
    collect.__annotations__["messages"] = list[Message[source.type]]  # type: ignore[name-defined]
    app.on(source, batch=BATCH, concurrency=1, group=group, **passed)(describe(collect, "resequencer", publishes=(to,)))
    due(app, tables["streams"], every=often(found.gap), bus=source.bus, group=f"{group}-due")(fired)
