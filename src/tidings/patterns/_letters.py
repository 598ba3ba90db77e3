"""Dead letters that a pattern publishes itself: of messages it has handled before, or does not want."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from tidings.kernel.clock import current_clock
from tidings.kernel.dead import dead_letter
from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery


def letter(message: Message[Any], group: str, reason: str) -> Message[Any]:
    """The dead letter of a group, to be returned by its handler as any other message."""
    delivery: Any = Delivery(replace(message, data=UNSET), session=None)  # type: ignore[arg-type]
    return dead_letter(delivery, group, reason, None, current_clock().now(), 0)
