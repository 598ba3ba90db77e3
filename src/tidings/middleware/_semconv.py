"""What spans are called and say: OpenTelemetry's semantic conventions for messaging, version 1.44.0 (in development).

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ – a newer version is followed here, and only
here. Names that begin with ``tidings.`` are ours: the conventions have none for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidings.kernel.transport import Delivery

from . import Group

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

ERROR_TYPE = "error.type"
MESSAGE_ID = "messaging.message.id"
OUTCOME = "tidings.outcome"  # of a failure: what follows

Attributes = dict[str, str | int]


def span_name(group: Group, deliveries: Sequence[Delivery]) -> str:
    """``process <destination>``, of low cardinality: the template, else a topic without one; unknown is left out."""
    known = group.template or (deliveries[0].message.topic if group.name else "")
    return f"process {known}" if known else "process"


def process(group: Group, deliveries: Sequence[Delivery]) -> Attributes:
    """The attributes of a span that processes these messages."""
    said: Attributes = {
        "messaging.system": "tidings",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
    }
    if group.name:
        said["messaging.consumer.group.name"] = group.name
    topics = {delivery.message.topic for delivery in deliveries}
    if len(topics) == 1:  # a batch may hold messages of several
        said["messaging.destination.name"] = topics.pop()
    if group.template and group.template != said.get("messaging.destination.name"):
        said["messaging.destination.template"] = group.template
    if len(deliveries) > 1:
        return said | {"messaging.batch.message_count": len(deliveries)}
    message = deliveries[0].message
    said |= {MESSAGE_ID: message.id, "tidings.attempt": deliveries[0].attempt}
    if message.correlation_id:
        said["messaging.message.conversation_id"] = message.correlation_id
    return said


def error_type(error: BaseException) -> str:
    """The canonical name of an exception's class."""
    kind: Any = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
