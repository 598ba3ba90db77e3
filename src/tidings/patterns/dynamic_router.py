"""A router whose rules are registered by messages while it runs (EIP: Dynamic Router).

    @dynamic_router(app, orders, rules=offers)               # offers = Topic("orders.offers", Rule[Offer])
    def takes(order: Order, offer: Offer) -> bool:
        return order.weight <= offer.most

    await app.publish(offers, Rule("lorry", "depot.lorry", Offer(most=500)))      # a recipient announces itself
    await app.publish(offers, Rule("lorry"))                                      # and leaves

Rules are records: all processes route by the same, and those that start later, too. What is passed on, and the
settlement of what came, are one transaction where the bus keeps records itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin

from msgspec import Struct

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.errors import InvalidHandler, InvalidName, InvalidOption, Reject
from tidings.kernel.message import Message
from tidings.kernel.topics import check_topic, refuse_reserved
from tidings.router import Router, is_async
from tidings.state import State, Table

from ._around import stand_in
from ._forward import forwarded, one_topic
from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

T = TypeVar("T")
R = TypeVar("R")

BATCH = 256  # messages that are routed by one look at the rules
MOST = 10_000  # rules
FORGOTTEN = 86_400.0  # seconds: so long a recipient that left is known to have left


class Rule(Struct, Generic[R], frozen=True, omit_defaults=True):
    """What a recipient announces: its ``name``, the topic it wants to get messages on, and ``when``, which the router's
    function understands. Without a topic it leaves. ``rank``: of several that match, the greatest comes first."""

    name: str
    topic: str = ""
    when: R | None = None
    rank: int = 0


class Known(Struct, Generic[R], frozen=True):
    """A rule as a record, and when it was announced."""

    rule: Rule[R]
    at: float


Matches = Callable[[T, R], bool]


def dynamic_router(
    app: Router,
    source: Topic[T],
    /,
    *,
    rules: Topic[Rule[R]],
    otherwise: Topic[T] | None = None,
    every: bool = False,
    **options: Unpack[Durable],
) -> Callable[[Matches[T, R]], Matches[T, R]]:
    """Pass a message on to the recipient whose rule the function says yes to: ``(payload, when) -> bool``, plain.

    ``rules``: the control topic, heard from the router's first start on. The latest announcement of a name counts, by
    its time; up to 10,000 are known. Of several that match, the one of the highest ``rank`` gets the message, then by
    name; with ``every``, all do. What nobody wants goes to ``otherwise``, or else to the dead letters: it can be
    replayed when there is a rule. Rules change between two batches. ``options`` as of ``app.on``; its groups are
    ``<app>.<function>`` and that with ``-rules``. Body, key, headers and expiration stay as they are.

    Raises ``InvalidOption``, ``InvalidHandler``; at start-up ``Unsupported`` if no bus of the app keeps records.
    """
    fallback = () if otherwise is None else (one_topic(otherwise, "otherwise"),)
    table: Table[Known[Any]] = Table(f"_routes.{one_topic(rules, 'rules').name}", _known(rules.type), expires=True)

    async def learn(message: Message[Rule[Any]], state: State) -> None:
        rule = _checked(message.data)
        before = await state.get(table, rule.name)
        if before is None or message.time >= before.at:
            gone = None if rule.topic else message.time + FORGOTTEN
            state.put(table, rule.name, Known(rule, message.time), due=gone)

    def register(fn: Matches[T, R]) -> Matches[T, R]:
        if is_async(fn):
            what, mend = f"{fn.__qualname__}() cannot be async", "decide by the payload and the rule alone"
            raise InvalidHandler(what, mend=mend, where=where(fn))

        def ways(message: Message[Any], ranked: Sequence[Rule[Any]]) -> Iterable[Topic[Any]]:
            wanted = (rule.topic for rule in ranked if rule.when is None or fn(message.data, rule.when))
            names = dict.fromkeys(wanted if every else islice(wanted, 1))
            if not names and not fallback:
                raise Reject("no rule matches, and there is no other way")
            return [Topic(name, source.type, bus=source.bus) for name in names] or fallback

        async def route(messages: list[Message[Any]], state: State) -> list[Message[Any]]:
            known = [each.rule for each in (await state.scan(table, limit=MOST)).values() if each.rule.topic]
            ranked = sorted(known, key=lambda rule: (-rule.rank, rule.name))
            by = f"{table.name}/{fn.__name__}"
            return [forwarded(message, to, by) for message in messages for to in ways(message, ranked)]

        on: Any = app.on
        on(rules)(describe(stand_in(fn, learn, "-rules"), "dynamic router"))
        router = describe(stand_in(fn, route), "dynamic router", publishes=fallback)
        on(source, batch=BATCH, **{"concurrency": 1, **options})(router)
        return fn

    return register


def _known(kind: Any) -> Any:
    """The type of a record, from that of the control topic."""
    if (get_origin(kind) or kind) is not Rule:
        raise InvalidOption(f"rules cannot carry {kind!r}", mend='Topic("orders.offers", Rule[Offer])')
    (when,) = get_args(kind) or (Any,)
    return Known[when]  # type: ignore[valid-type]


def _checked(rule: Rule[Any]) -> Rule[Any]:
    """A rule that can be followed; raises ``Reject``."""
    if not rule.name or "\0" in rule.name:
        raise Reject(f"a rule cannot be called {rule.name!r}")
    try:
        if rule.topic:
            refuse_reserved(check_topic(rule.topic))
    except InvalidName as error:
        raise Reject(f"rule {rule.name!r}: {error.what}") from error
    return rule
