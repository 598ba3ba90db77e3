"""What a client may say of a message it publishes: judged here, whatever protocol it came by.

Buses carry most of this as headers of their own, beside ours: what could be read there as something else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tidings.kernel.codec import refuse_large
from tidings.kernel.errors import TooLarge
from tidings.kernel.message import Message

from .limits import Limits
from .refusals import Malformed

OURS = ("tdg", "ce-", "ce_", "cloudevents:", "cloudevents_", "nats-", "nmqtt-")  # how headers of a bus may begin
FIRST, LAST = -62_135_596_800.0, 253_402_300_799.0  # the years 1 to 9999: what RFC 3339 can say
_control = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


def judge(messages: Iterable[Message[Any]], limits: Limits) -> None:
    """Raises ``TooLarge``, ``Malformed`` for the first draft that nobody may publish."""
    size = 0
    for message in messages:
        refuse_large(message, limits.body)
        size += len(message.body)
        if message.address is not None or message.reply_to is not None:
            raise Malformed("a message cannot be addressed past its topic", mend="leave out address and reply_to")
        told = f"{message.id}{message.key}{message.type}{message.source}{message.content_type}{message.correlation_id}"
        if not told.isprintable() and _control(f"{told}{message.causation_id}"):
            raise Malformed("id, key, type, source or content type has a control character", mend="leave it out")
        if message.headers is not None:
            _judge_headers(message.headers)
        for at in (message.time, message.deliver_at, message.expires_at):
            if at is not None and not FIRST <= at <= LAST:
                raise Malformed("a time is before the year 1 or after 9999", mend="mend the clock, or leave it out")
    if size > limits.batch:
        raise TooLarge(f"{size:,} bytes at once are more than {limits.batch:,}", mend="publish fewer")


def _judge_headers(headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        if not name or name.lower().startswith(OURS) or (not name.isprintable() and _control(name)):
            mend = f"rename it: not {', '.join(OURS)} at its beginning, and no control characters"
            raise Malformed(f"no header can be called {name!r}", why="it is read as something else", mend=mend)
        if not value.isprintable() and "\x00" in value:
            raise Malformed(f"header {name!r} has a zero character", mend="leave it out")
