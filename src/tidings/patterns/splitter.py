"""One message in, its parts out, each a message of its own (EIP: Splitter).

    @splitter(app, orders, to=lines, key=lambda line: line.sku)
    def lines_of(order: Order) -> list[Line]:
        return order.lines

The parts are published with the settlement of what was split: all or none where the bus can, and with the same ids
when the handler runs again. Their headers say which part of how many each is (EIP: Message Sequence), so that an
aggregator can put them together again.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Set
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.errors import InvalidOption, WrongReturn
from tidings.kernel.message import Message
from tidings.router import Router

from ._around import around
from ._pattern import describe
from .message_sequence import sequenced

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

    from ._splits import Splits

T = TypeVar("T")
R = TypeVar("R")

PARENT = "_tidings_parent"


@overload
def splitter(
    app: Router,
    source: Topic[T],
    /,
    *,
    to: Topic[R],
    key: Callable[[R], str | None] | None = ...,
    **options: Unpack[Durable],
) -> Splits[T, R]: ...
@overload
def splitter(
    app: Router,
    source: str,
    /,
    *,
    to: Topic[R],
    key: Callable[[R], str | None] | None = ...,
    **options: Unpack[Durable],
) -> Splits[Any, R]: ...
def splitter(
    app: Router,
    source: Any,
    /,
    *,
    to: Topic[Any],
    key: Callable[[Any], str | None] | None = None,
    **options: Any,
) -> Any:
    """Publish the parts of a message: the function takes it and returns an iterable of payloads of ``to``.

    A generator or an async generator will do; so will no part at all, and then nothing is published. ``source``: a
    topic or pattern. ``key``: of each part; default the key of what is split, so that parts of one key stay in order.
    Other parameters of the function are filled as in any handler, and ``options`` are those of ``app.on``.

    The parts are held in memory until all are there, and settled in one piece: split what is larger in two steps.

    Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``. A result that is no iterable is a ``WrongReturn``.
    """
    if not isinstance(to, Topic) or not to.publishable:
        raise InvalidOption(f"to cannot be {to!r}", mend='one topic: Topic("orders.lines", Line)')
    if key is not None and not callable(key):
        raise InvalidOption(f"key cannot be {key!r}", mend="a function of a part: key=lambda line: line.sku")
    if options.get("batch") or options.get("run") == "process":
        mend = "run='thread'; or split in a plain handler: return sequenced(drafts, message.id)"
        raise InvalidOption("a splitter takes one message at a time, and not in a process", mend=mend)

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        def parts(result: Any, parent: Message[Any]) -> list[Message[Any]]:
            whole = _checked(result, fn)
            return sequenced((to(part, key=parent.key if key is None else key(part)) for part in whole), parent.id)

        app.on(source, **options)(describe(around(fn, parts), "splitter", publishes=(to,)))
        return fn

    return register


def _checked(result: Any, fn: Callable[..., Any]) -> Iterable[Any]:
    """What a function returned, if it is parts in an order that is the same when it runs again."""
    if result is None:
        return ()
    unordered = isinstance(result, Set) and not isinstance(result, KeysView | ItemsView)
    if unordered or isinstance(result, str | bytes | Mapping | Message) or not isinstance(result, Iterable):
        what = f"{fn.__qualname__}() returned {type(result).__name__}, which is no sequence of parts"
        raise WrongReturn(what, mend="return a list of payloads, or yield them", where=where(fn))
    return result
