"""What a bus retains, as copies to be published elsewhere."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tidings import Message
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import derived_id
from tidings.kernel.topics import matches
from tidings.kernel.transport import Inspectable

from ._bus import PAGE

COMMON = {"deliver_at": None, "expires_at": None, "reply_to": None, "address": None}


class Copies(Struct, kw_only=True):
    """Of what is retained in ``pattern``, and happened in [since, until): copies for ``topic``, or for the same topic.

    ``{topic}`` in ``topic`` stands for where it was. ``same_bus``: copies go to where they come from.
    """

    pattern: str
    since: float = -math.inf
    until: float = math.inf
    topic: str | None = None
    same_bus: bool = True

    async def pages(self, bus: Inspectable, left: int) -> AsyncIterator[list[Message[Any]]]:
        """Copies of the first ``left`` messages, in the order of publication.

        ``left`` were there at the beginning: copies that come to lie in the pattern, on a bus that goes by two names,
        are not read again.
        """
        after = 0
        while page := (await bus.peek(self.pattern, after, PAGE))[:left]:
            chosen = [stored.message for stored in page if self.since <= stored.message.time < self.until]
            if chosen:
                yield list(map(self.copied, chosen))
            after, left = page[-1].position, left - len(page)
            if not left:
                return

    def topic_of(self, original: str) -> str:
        """Where copies of a topic's messages go. Raises ``InvalidOption`` where they would be read again."""
        topic = original if self.topic is None else self.topic.replace("{topic}", original)
        if self.same_bus and matches(self.pattern, topic):
            what = f"copies to {topic!r} would be read again: they are in {self.pattern!r}"
            raise InvalidOption(what, mend="another --topic, a narrower --from, or --to another bus")
        return topic

    def copied(self, message: Message[Any]) -> Message[Any]:
        """In its own topic a message keeps its id. In another it has one that is derived: the same in every replay, so
        that a bus or a reader that knows ids takes the second replay for what it is, and no copy for its original.
        """
        topic = self.topic_of(message.topic)
        if topic == message.topic and not self.same_bus:
            return replace(message, **COMMON)
        id = derived_id(message.id, "", topic, 0)
        return replace(message, topic=topic, id=id, causation_id=message.id, **COMMON)
