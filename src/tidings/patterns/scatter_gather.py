"""A question goes to several, and what they answer becomes one (EIP: Scatter-Gather).

    @scatter_gather(app, wanted, recipients=[north, south], replies=quotes, to=offers, timeout="5s")
    def best(found: list[Quote]) -> Offer:
        return Offer(min(found, key=lambda quote: quote.price))

    @app.on(north)
    async def quote(message: Message[Wanted]) -> Message[Quote]:
        return answer(message, quotes(Quote("north", 12.5)))

What was asked, and what has been answered, is kept in records: there is one outcome, whoever dies meanwhile, and in
time also when nobody answers. ``ask_all`` is the quick form: requests, and nothing of it is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.app import App
from tidings.channels import Service, Topic
from tidings.inject import where
from tidings.kernel.errors import Duration, InvalidOption, RequestError, WrongReturn
from tidings.kernel.message import Message, seconds
from tidings.router import Router

from ._forward import forward, one_topic
from ._options import functions, group_of
from ._scattering import Scattering, answer, gatherer, rules_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._aggregates import Answers, Whole

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")

__all__ = ["answer", "ask_all", "scatter_gather"]

RULES = ("size", "timeout", "partial", "late")


def scatter_gather(
    app: Router,
    source: Topic[Q],
    /,
    *,
    recipients: Sequence[Topic[Q]] | Callable[[Q], Iterable[Topic[Q]]],
    replies: Topic[A],
    to: Topic[R],
    until: Callable[[list[A]], bool] | None = None,
    **options: Unpack[Answers],
) -> Whole[list[A], R]:
    """Pass each message of ``source`` on to all ``recipients``, and publish to ``to`` what the function makes of the
    answers, in the order of the recipients.

    ``recipients``: topics, or a function of the payload that returns them. They publish to ``replies``, which is for
    this question only, with ``answer(message, draft)``; the header ``return-address`` says it to other programs. It is
    over when all have answered, or ``size`` of them; when ``until`` says so of the answers; at the latest after
    ``timeout`` (30 s), however few have come: the function then gets those, or with ``partial`` they are left
    (``"drop"``) or go to the dead letters (``"dead"``). It may return None, for no outcome. What comes after is
    dropped, or ``late="dead"``. A recipient counts once. The outcome has the key and the correlation id of the
    question, and a header ``aggregate``: ``complete`` or ``timeout``.

    ``group`` names both subscriptions (with ``-gather`` that of the answers) and the records. ``start``, ``backoff``,
    ``breaker``: as in ``app.on``. Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``.
    """
    rules, passed, name = rules_of({"timeout": "30s", **options}, RULES, "a scatter-gather")
    one_topic(to, "to")
    one_topic(replies, "replies")
    functions(until=until)
    if isinstance(recipients, Topic):
        raise InvalidOption(f"recipients cannot be {recipients!r}", mend="a list of topics, or a function of a payload")
    if not callable(recipients):
        recipients = [one_topic(topic, "a recipient") for topic in recipients]

    def register(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        group = group_of(app, fn, name)

        def ask(message: Message[Any]) -> list[Message[Any]]:
            chosen = _chosen(recipients(message.data), fn) if callable(recipients) else recipients
            return [forward(message, topic) for topic in chosen]

        publishes = () if callable(recipients) else recipients
        gathering = gatherer(fn, group, replies, to, rules, until)
        scattering = Scattering(group=group, ask=ask, replies=replies, gathering=gathering)
        scattering.register(app, source, "scatter-gather", publishes, passed)
        return fn

    return register  # type: ignore[return-value]


def _chosen(found: Any, fn: Callable[..., Any]) -> list[Topic[Any]]:
    chosen = list(found) if isinstance(found, Iterable) else [found]
    for topic in chosen:
        if not isinstance(topic, Topic) or not topic.publishable:
            raise WrongReturn(f"recipients= returned {topic!r:.100}", mend="return topics", where=where(fn))
    return chosen


async def ask_all(app: App, services: Iterable[Service[Q, A]], data: Q, *, timeout: Duration = "5s") -> list[A]:
    """Ask several services at once: the replies that came within ``timeout``, in the order of ``services``.

    Who does not answer, or with an error, is left out. Nothing of this is durable.
    """
    within = seconds(timeout, "timeout")
    asked = [asyncio.ensure_future(app.request(service, data, timeout=within)) for service in services]
    replies = await asyncio.gather(*asked, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException) and not isinstance(reply, RequestError):
            raise reply
    return [reply for reply in replies if not isinstance(reply, BaseException)]
