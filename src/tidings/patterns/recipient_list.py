"""A message is passed on to a list of topics that is made for it (EIP: Recipient List).

    @recipient_list(app, orders)
    def interested(order: Order) -> list[Topic[Order]]:
        return [warehouse, *(customs,) * order.abroad]

All recipients get it, or none: what is passed on is published with the settlement of what came, in one transaction
where the bus can. Which recipients there are may change while it runs: look them up in a dict, or by ``state: State``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.errors import InvalidOption, WrongReturn
from tidings.kernel.message import Message
from tidings.router import Router

from ._around import around
from ._forward import forward, named, one_topic
from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

    from ._splits import Splits

T = TypeVar("T")


@overload
def recipient_list(app: Router, source: Topic[T], /, **options: Unpack[Durable]) -> Splits[T, Topic[T]]: ...
@overload
def recipient_list(app: Router, source: str, /, **options: Unpack[Durable]) -> Splits[Any, Topic[Any]]: ...
def recipient_list(app: Router, source: Any, /, **options: Any) -> Any:
    """Pass a message on to every topic that the function returns or yields; one that is named twice gets it once.

    ``source``: a topic or pattern. The function takes the payload, and whatever handlers take; without recipients the
    message is settled and goes nowhere. Body, key, headers and expiration stay as they are. ``options`` as of
    ``app.on``. Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``; what is no topic is a ``WrongReturn``.
    """
    if options.get("batch") or options.get("run") == "process":
        raise InvalidOption("a recipient list takes one message at a time, and not in a process", mend="run='thread'")

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        def copies(result: Any, message: Message[Any]) -> list[Message[Any]]:
            return [forward(message, topic) for topic in _recipients(result, fn)]

        app.on(source, **options)(describe(around(fn, copies), "recipient list"))
        return fn

    return register


def multicast(app: Router, source: Topic[T], /, *recipients: Topic[T], **options: Unpack[Durable]) -> None:
    """Pass every message on to the same topics, all or none: a recipient list that is always the same.

    Who wants a copy can simply listen to ``source``; this is for topics that others own. Its group is called after the
    source unless ``group`` is given. Raises ``InvalidOption``.
    """
    if not recipients:
        raise InvalidOption("multicast was given no recipients", mend="multicast(app, orders, billing, shipping)")
    topics = [one_topic(topic, "a recipient") for topic in recipients]

    async def copies(message: Message[Any]) -> list[Message[Any]]:
        return [forward(message, topic) for topic in topics]

    on: Any = app.on
    on(source, **options)(describe(named(copies, "multicast", source), "recipient list", publishes=topics))


def _recipients(result: Any, fn: Callable[..., Any]) -> Iterable[Topic[Any]]:
    """What a function returned, each once."""
    found = [result] if isinstance(result, Topic) or not isinstance(result, Iterable) else list(result)
    for topic in found:
        if not isinstance(topic, Topic) or not topic.publishable:
            what = f"{fn.__qualname__}() returned {topic!r}, which is no topic to publish to"
            raise WrongReturn(what, mend="return a list of topics, each with its captures bound", where=where(fn))
    return {(topic.bus, topic.name): topic for topic in found}.values()
