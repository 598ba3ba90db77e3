"""A user's function, compiled once into one of two shapes.

``One`` handles a delivery and returns its outgoing messages, sealed, or raises. ``Many`` handles several and returns an
outcome for each: batch handlers, and plain functions that run in threads or processes. A middleware is ``One → One``;
one that has an attribute ``many: Many → Many`` may wrap batch handlers too.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .codec import Decode, refuse_large, seal
from .errors import InvalidHandler, Partial, WrongReturn
from .message import Message, derived_id, opened
from .transport import Consumer, Delivery

Outgoing = tuple[Message[Any], ...]
Outcome = Outgoing | BaseException
One = Callable[[Delivery], Awaitable[Outgoing]]
Many = Callable[[Sequence[Delivery]], Awaitable[Sequence[Outcome]]]
Emit = Callable[[Any, Message[Any] | None], Outgoing]
Middleware = Callable[[One], One]


class Handler(Struct, frozen=True):
    """A compiled handler: either ``one``, or ``many`` for up to ``limit()`` at once.

    ``batch``: it may take a key's whole run. A ``cancellable`` one ends when its task is cancelled. ``between``: what
    stands between its worker and the bus's consumer, of which it makes another.
    """

    one: One | None = None
    many: Many | None = None
    limit: Callable[[], int] = lambda: 1
    batch: bool = False
    cancellable: bool = True
    between: Callable[[Consumer], Consumer] = lambda consumer: consumer


class Origin(Struct, frozen=True, kw_only=True):
    """Where a handler's outputs come from: they carry the app as ``source``, and ids derived from input and group."""

    name: str
    where: str  # file:line of the function
    source: str
    group: str
    to: Callable[[Any], Message[Any]] | None = None  # a topic
    limit: int = 2**63  # bytes of an output's body
    buses: tuple[str, ...] = ("",)  # where outputs may go


def lean(fn: Callable[[Any], Awaitable[Any]], decode: Decode, emit: Emit) -> One:
    """A coroutine function that takes the payload and nothing else: the fastest way."""

    async def one(delivery: Delivery) -> Outgoing:
        message = delivery.message
        result = await fn(decode(message.body, message.content_type))
        return () if result is None else emit(result, message)

    return one


def full(invoke: Callable[[Delivery], Awaitable[Any]], emit: Emit) -> One:
    """Any other function, called by ``invoke``."""

    async def one(delivery: Delivery) -> Outgoing:
        return emit(await invoke(delivery), delivery.message)

    return one


def batch(fn: Callable[[list[Any]], Any], decode: Decode, emit: Emit, *, whole: bool) -> Many:
    """A function of a list of payloads, or of ``whole`` messages. An undecodable body fails alone."""

    async def many(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = [()] * len(deliveries)
        items: dict[int, Any] = {}
        for index, delivery in enumerate(deliveries):
            try:
                data = decode(delivery.message.body, delivery.message.content_type)
            except Exception as error:
                outcomes[index] = error
            else:
                items[index] = opened(delivery.message, data) if whole else data
        if items:
            indices = list(items)
            try:
                result = await collected(fn(list(items.values())))
                outcomes[indices[-1]] = emit(result, deliveries[indices[0]].message if len(items) == 1 else None)
            except Partial as partial:
                for position, failed in partial.errors.items():
                    outcomes[indices[position]] = failed
        return outcomes

    return many


def wrapped(handler: Handler, middleware: Sequence[Middleware], origin: Origin) -> Handler:
    """A handler inside its middleware, the first outermost. A thread or process then takes one message at a time."""
    one, many = handler.one, handler.many
    if many is None or not middleware or handler.batch:
        for layer in reversed(middleware):
            if many is not None and not hasattr(layer, "many"):
                why, mend = "a middleware takes single deliveries", "give it an attribute `many: Many -> Many`"
                raise InvalidHandler(f"{origin.name}() takes batches", why=why, mend=mend, where=origin.where)
            one = layer(one) if one is not None else None
            many = layer.many(many) if many is not None else None  # type: ignore[attr-defined]
        return replace(handler, one=one, many=many)

    return wrapped(Handler(one=single(handler), cancellable=handler.cancellable), middleware, origin)


def single(handler: Handler) -> One:
    """The handler as a ``One``."""
    many = handler.many
    if handler.one is not None or many is None:
        return handler.one  # type: ignore[return-value]

    async def one(delivery: Delivery) -> Outgoing:
        outcome = (await many((delivery,)))[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return one


class Yielded(list[Any]):
    """What a generator yielded: several results, where a plain list with ``to=`` is one payload."""


async def collected(result: Any) -> Any:
    """What a function returned, awaited; what it yields, gathered."""
    if inspect.isawaitable(result):
        result = await result
    if isinstance(result, AsyncIterator):
        return Yielded([item async for item in result])
    return gathered(result)


def gathered(result: Any) -> Any:
    """What a plain function returned; what it yields, gathered."""
    return Yielded(result) if isinstance(result, Iterator) else result


def emitter(origin: Origin, now: Callable[[], float]) -> Emit:
    """From what a handler returned to sealed messages; with a parent, their ids are derived from its id.

    Raises ``WrongReturn`` and ``PayloadRefused``.
    """
    to, group, source = origin.to, origin.group, origin.source

    def wrong(result: Any) -> WrongReturn:
        what = f"{origin.name}() returned {type(result).__name__}, which is no message"
        mend = "return topic(payload), an iterable of messages, or None; or register it with to=topic"
        return WrongReturn(what, mend=mend, where=origin.where)

    def drafts(result: Any) -> Iterable[Message[Any]]:
        if to is not None:
            payloads = result if isinstance(result, Yielded) else (result,)
            return (to(payload) for payload in payloads if payload is not None)
        if isinstance(result, Message):
            return (result,)
        if isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping):
            return result
        raise wrong(result)

    def emit(result: Any, parent: Message[Any] | None) -> Outgoing:
        if result is None:
            return ()
        sent: list[Message[Any]] = []
        for draft in drafts(result):
            if not isinstance(draft, Message):
                raise wrong(draft)
            if draft.bus not in origin.buses:
                raise WrongReturn(f"{origin.name}(): no bus {draft.bus!r}", mend="App(..., x=url)", where=origin.where)
            id = derived_id(parent.id, group, draft.topic, len(sent)) if parent is not None else ""
            sealed = seal(draft, id=id, now=now(), source=source, parent=parent)
            refuse_large(sealed, origin.limit)
            sent.append(sealed)
        return tuple(sent)

    return emit
