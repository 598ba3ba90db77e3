"""Dead letters: messages that a group could not handle, with everything needed to mend and replay them.

A dead letter keeps its message's id, topic, key and body; what happened is in headers. It lives at ``_dead.<group>``.
"""

from __future__ import annotations

import socket
import traceback
from typing import Any

from msgspec.structs import replace

from .errors import text_of
from .message import Headers, Message
from .topics import DEAD
from .transport import Delivery


def dead_letter(
    delivery: Delivery, group: str, reason: str, error: BaseException | None, now: float, failures: int
) -> Message[Any]:
    """The dead letter of a delivery to ``group``."""
    message = delivery.message
    told = {"tdggroup": group, "tdgreason": reason, "tdgfailures": str(failures), "tdgcrashes": str(delivery.crashes)}
    told |= {"tdgdeadat": f"{now:.3f}", "tdghost": socket.gethostname()}
    if error is not None:
        told["tdgerror"] = type(error).__qualname__
        told["tdgdetail"] = _cut(text_of(error), 1024)
        told["tdgtraceback"] = _cut("".join(traceback.format_exception(error)), 4096)
    cleared = {"address": DEAD + group, "deliver_at": None, "expires_at": None, "priority": 0, "reply_to": None}
    return replace(message, headers=(*(original_headers(message.headers) or ()), *told.items()), **cleared)


def original_headers(headers: Headers | None) -> Headers | None:
    """Headers without ours."""
    return tuple((name, value) for name, value in headers or () if not name.startswith("tdg")) or None


def _cut(text: str, limit: int) -> str:
    """The end of a text that is too long: of a traceback, the end says most."""
    return text.encode(errors="replace")[-limit:].decode(errors="ignore")
