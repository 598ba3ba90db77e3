"""A message whose parts are handled each in its own way comes out again as one (EIP: Composed Message Processor).

    @composed_message_processor(app, orders, split=lambda order: order.lines, parts=stock_for, results=checked, to=done)
    def whole(found: list[Checked]) -> Done:
        return Done(all(line.there for line in found))

    @app.on(widgets)
    async def check(message: Message[Line]) -> Message[Checked]:
        return answer(message, checked(Checked(message.data.sku, there=True)))

It is a splitter, plain handlers, and an aggregator. What is out, and what has come back, is kept in records: no part is
lost or counted twice in a crash, and each message has one result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.errors import WrongReturn
from tidings.kernel.message import Message
from tidings.router import Router

from ._forward import one_topic
from ._options import functions, group_of
from ._scattering import Scattering, gatherer, rules_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._aggregates import Answers, Whole

T = TypeVar("T")
P = TypeVar("P")
A = TypeVar("A")
R = TypeVar("R")

RULES = ("timeout", "partial", "late")


def composed_message_processor(
    app: Router,
    source: Topic[T],
    /,
    *,
    split: Callable[[T], Iterable[P]],
    parts: Topic[P] | Callable[[P], Topic[P]],
    results: Topic[A],
    to: Topic[R],
    **options: Unpack[Answers],
) -> Whole[list[A], R]:
    """Publish the parts of each message, and to ``to`` what the function makes of their results, in the order of the
    parts.

    ``split``: from a payload to its parts. ``parts``: where they go, or a function that says it of a part. Who handles
    one publishes to ``results``, which is for this processor only, with ``answer(message, draft)``. A part has the key
    of its message; the whole has it as well, and a header ``aggregate``: ``complete`` or ``timeout``.

    Without ``timeout`` it waits until all results are there, also for a part that is a dead letter and replayed. With
    it, what has come by then is ``partial``: ``"publish"``, ``"drop"`` or ``"dead"``. What comes after is dropped, or
    ``late="dead"``. A message without parts becomes what the function makes of ``[]``.

    ``group`` names both subscriptions (with ``-gather`` that of the results) and the records. ``start``, ``backoff``,
    ``breaker``: as in ``app.on``. Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``.
    """
    rules, passed, name = rules_of(dict(options), RULES, "a composed message processor")
    one_topic(to, "to")
    one_topic(results, "results")
    functions(split=split)
    if not callable(parts) or isinstance(parts, Topic):
        one_topic(parts, "parts")

    def register(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        group = group_of(app, fn, name)

        def ask(message: Message[Any]) -> list[Message[Any]]:
            return [_topic(parts, part, fn)(part, key=message.key) for part in split(message.data)]

        gathering = gatherer(fn, group, results, to, rules)
        scattering = Scattering(group=group, ask=ask, replies=results, gathering=gathering)
        publishes = (parts,) if isinstance(parts, Topic) else ()
        scattering.register(app, source, "composed message processor", publishes, passed)
        return fn

    return register  # type: ignore[return-value]


def _topic(parts: Any, part: Any, fn: Callable[..., Any]) -> Topic[Any]:
    topic = parts if isinstance(parts, Topic) else parts(part)
    if not isinstance(topic, Topic) or not topic.publishable:
        raise WrongReturn(f"parts= returned {topic!r:.100}", mend="return a topic", where=where(fn))
    return topic
