"""Messages are spread over topics by weight, those of one key always to the same (beyond the book: Load Balancer).

Processes of one group need none: they take what they can do (EIP: Competing Consumers). This is for topics that differ:
a canary that gets a tenth, shards with their own databases, machines of two sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from math import log
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.channels import Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import Message
from tidings.router import Router

from ._forward import forward, named, one_topic
from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

T = TypeVar("T")


def load_balancer(app: Router, source: Topic[T], to: Mapping[Topic[T], float], /, **options: Unpack[Durable]) -> None:
    """Pass each message on to one of the topics: ``load_balancer(app, orders, {steady: 9, canary: 1})``.

    The key decides, or without one the message's id, by weighted rendezvous hashing: the same in every process, and
    when a weight changes or a topic is added or removed only those keys move that must. A weight of 0 gets nothing.
    Body, key, headers and expiration stay as they are. Its group is called after the source unless ``group`` is given;
    ``options`` as of ``app.on``. Raises ``InvalidOption``.
    """
    weights = {one_topic(topic, "a key of to"): _weight(weight) for topic, weight in to.items()}
    if not any(weights.values()):
        raise InvalidOption("no topic has a weight above 0", mend="load_balancer(app, orders, {steady: 9, canary: 1})")

    async def balance(message: Message[Any]) -> Message[Any]:
        return forward(message, choose(message.key or message.id, weights))

    on: Any = app.on
    on(source, **options)(describe(named(balance, "load_balancer", source), "load balancer", publishes=weights))


def choose(key: str, weights: Mapping[Topic[T], float]) -> Topic[T]:
    """The topic of a key: pure, the same everywhere. Topics are known by their names."""
    return max(
        (topic for topic in weights if weights[topic]), key=lambda topic: _score(key, topic.name, weights[topic])
    )


def _score(key: str, name: str, weight: float) -> float:
    """Each topic draws a number for the key, the larger the greater its weight: ``-weight / ln(uniform)``."""
    drawn = int.from_bytes(blake2b(f"{name}\0{key}".encode(), digest_size=8).digest(), "big")
    return -weight / log((drawn + 0.5) / 2**64)


def _weight(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise InvalidOption(f"a weight cannot be {weight!r}", mend="a number, at least 0")
    return float(weight)
