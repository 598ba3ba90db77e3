"""A message passed on as it is, to another topic: what every router does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from tidings.channels import Topic
from tidings.kernel.dead import original_headers
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import Message, derived_id


def forward(message: Message[Any], topic: Topic[Any]) -> Message[Any]:
    """A draft for ``topic`` with the body of a message that was received, its key, headers and priority.

    It is not decoded: fields that the receiver's type does not know are kept. It expires when the original does.
    """
    return Message(
        topic.name,
        message.body,
        key=message.key,
        type=topic.template,
        content_type=message.content_type,
        headers=original_headers(message.headers),
        priority=message.priority,
        expires_at=message.expires_at,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        bus=topic.bus,
    )


def forwarded(message: Message[Any], topic: Topic[Any], by: str) -> Message[Any]:
    """``forward`` for handlers of batches, whose outputs have no parent: with an id, the same when it is done again."""
    return replace(
        forward(message, topic),
        id=derived_id(message.id, by, topic.name, 0),
        correlation_id=message.correlation_id or message.id,
        causation_id=message.id,
    )


def one_topic(topic: Any, name: str) -> Topic[Any]:
    """``topic``, if messages can be published to it; else raises ``InvalidOption``."""
    if not isinstance(topic, Topic) or not topic.publishable:
        raise InvalidOption(f"{name} cannot be {topic!r}", mend='one topic: Topic("orders.checked", Order)')
    return topic


def named(fn: Callable[..., Any], pattern: str, source: Topic[Any] | str) -> Callable[..., Any]:
    """Call a handler that is no user's function after its pattern and what it listens to: that is its group's name."""
    listened = source.template if isinstance(source, Topic) else source
    fn.__name__ = fn.__qualname__ = f"{pattern}_{str(listened).replace('.', '_')}"
    return fn
