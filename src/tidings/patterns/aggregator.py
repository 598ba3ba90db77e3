"""Messages that belong together become one (EIP: Aggregator).

    @aggregator(app, lines, by=lambda line: line.order, size=3, timeout="30s", to=orders)
    def whole(lines: list[Line]) -> Order:
        return Order(lines[0].order, lines)

A group is open until it is complete: by its size, by a predicate, some time after its first message or its last. It is
kept in records, which are written in one transaction with the settlement of its messages and the publishing of what it
becomes: no crash loses a message or counts it twice. There is no timer per group, and none is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tidings.channels import Topic
from tidings.kernel.codec import decoder
from tidings.kernel.errors import InvalidOption
from tidings.router import Router
from tidings.state import Table

from ._aggregation import HEADER, Aggregation, install
from ._completion import Completion, completion
from ._forward import one_topic
from ._grouping import Folded, Kept, Listed
from ._options import functions, group_of, refuse_unknown, total_type

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._aggregates import Rules, Whole

__all__ = ["HEADER", "aggregator"]

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

PASSED = ("ordered", "start", "backoff", "breaker")  # to app.on


@overload
def aggregator(
    app: Router,
    source: Topic[T],
    /,
    *,
    to: Topic[R],
    by: Callable[[T], str] | None = ...,
    until: Callable[[list[T]], bool] | None = ...,
    **rules: Unpack[Rules],
) -> Whole[list[T], R]: ...
@overload
def aggregator(
    app: Router,
    source: Topic[T],
    /,
    *,
    to: Topic[R],
    fold: Callable[[A | None, T], A],
    by: Callable[[T], str] | None = ...,
    until: Callable[[A], bool] | None = ...,
    **rules: Unpack[Rules],
) -> Whole[A, R]: ...
def aggregator(
    app: Router,
    source: Topic[Any],
    /,
    *,
    to: Topic[Any],
    by: Callable[[Any], str] | None = None,
    until: Callable[[Any], bool] | None = None,
    fold: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> Any:
    """Collect messages by a key, and publish to ``to`` what the function makes of each complete group.

    It gets the payloads as they came, and returns a payload of ``to``, or None for nothing. ``by``: the key of a
    payload; without it, groups are message sequences (EIP), complete when all parts are there, and in their order.
    ``fold(total or None, payload)`` keeps only a total, which the function then gets.

    Complete: with ``size`` messages; when ``until`` says so of the list, or the total, after a message; ``timeout``
    after the first message, ``idle`` after the last. What ends by time is ``partial``: ``"publish"``, ``"drop"``, or
    ``"dead"``: its messages are dead letters. What comes to a closed group begins a ``"new"`` one, or ``late`` says
    ``"drop"`` or ``"dead"``: then groups are known for ``remember`` (10 minutes) after the last that came. These dead
    letters are on the bus that keeps the records.

    The result has the group's key, and a header ``aggregate``: ``complete``, ``timeout`` or ``idle``. A message that
    comes twice counts once while its group is open, but not in a total. If the function raises, its group stays as it
    is, and the message that completed it is retried, at last a dead letter; a group that ended by time is tried again.

    ``group``: names the subscription and the records (``"<app>.<function>"``): keep it, or open groups are forgotten.
    ``ordered``, ``start``, ``backoff``, ``breaker``: as in ``app.on``. With several processes let messages of a group
    have one ``key``, and say ``ordered=True``: else two may work on one group, and one of them runs again.

    Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``.
    """
    if not isinstance(source, Topic):
        raise InvalidOption(f"an aggregator cannot listen to {source!r}", mend='a topic: Topic("orders.lines", Line)')
    rules, passed = completion(options), {name: options.pop(name) for name in PASSED if name in options}
    one_topic(to, "to")
    _check(rules, by, until, fold, options)
    given_group = options.pop("group", "")

    def register(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        group = group_of(app, fn, given_group)
        found = Aggregation(
            fn=fn,
            to=to,
            group=group,
            rules=rules,
            kept=_kept(source, group, fold, looks=until is not None, numbered=by is None),
            table=Table(f"{group}.open", bytes),
            by=by,
            until=until,
        )
        install(app, source, found, passed)
        return fn

    return register


def _check(rules: Completion, by: Any, until: Any, fold: Any, options: dict[str, Any]) -> None:
    known = (*Completion.__struct_fields__, *PASSED, "group", "by", "until", "fold")
    refuse_unknown(options, known, "an aggregator")
    functions(by=by, until=until, fold=fold)
    if by is not None and until is None and not (rules.size or rules.timeout or rules.idle):
        raise InvalidOption("no group would ever be complete", mend="size=, until=, timeout= or idle=")
    if fold is not None and rules.partial == "dead":
        raise InvalidOption("partial='dead' cannot be with fold=", why="a total has no messages", mend="'drop'")


def _kept(source: Topic[Any], group: str, fold: Callable[[Any, Any], Any] | None, **how: bool) -> Kept:
    if fold is None:
        return Listed(f"{group}.items", decoder(source.type, lax=source.lax), **how)
    return Folded(fold, total_type(fold))
