"""EIP: Message Store. A copy of every message of some topics, found by time, topic, id and correlation, for as long as
it shall be kept.

    history = MessageStore(app, "history", "orders.>", "payments.>", keep="90d")
    ...
    found = await history.find(topic="orders.*", since=yesterday)

The bus keeps what it needs, and no longer; this keeps what people will ask for. Copies are records of the app's store
(``State``): where that is the bus, they are there exactly once; elsewhere twice is once, too: they are found by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nextafter
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.kernel.errors import Duration, InvalidOption
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import check_pattern, is_pattern, matches, refuse_reserved, token
from tidings.relay import store_of
from tidings.state import State, Table
from tidings.store import Record

from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

BATCH, PAGE = 256, 1_000
FOREVER = 1e11  # Unix seconds, some thousand years from now

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Message[Any]).decode


class MessageStore:
    """Keeps copies of all messages of ``sources``, topics or patterns, while the app runs.

    ``name``: of its tables, and the beginning of its groups' names. ``keep``: how long after its time a message is
    removed; None: never, but by ``purge``. ``options``: as in ``app.on``. Raises ``InvalidOption``, ``InvalidName``.
    """

    def __init__(
        self,
        app: App,
        name: str,
        /,
        *sources: Topic[Any] | str,
        keep: Duration | None = None,
        **options: Unpack[Durable],
    ) -> None:
        if not sources:
            raise InvalidOption(f"{name!r} stores nothing", mend='MessageStore(app, "history", "orders.>")')
        self.bus = sources[0].bus if isinstance(sources[0], Topic) else options.get("bus", "")
        self.app, self.keep = app, 0.0 if keep is None else seconds(keep, "keep")
        expires = keep is not None
        self.copies = Table(name, bytes, expires=expires)  # by time, then id
        self.by_id, self.by_topic, self.by_correlation = (
            Table(f"{name}.{by}", str, expires=expires) for by in ("ids", "topics", "correlations")
        )
        for source in sources:
            self._listen(name, source, options)

    def _listen(self, name: str, source: Topic[Any] | str, options: Any) -> None:
        bus = source.bus if isinstance(source, Topic) else options.get("bus", "")

        async def store(messages: list[Message[bytes]], state: State) -> None:
            for message in messages:
                self._put(message, state)

        pattern = refuse_reserved(source.pattern if isinstance(source, Topic) else source)
        store.__name__ = store.__qualname__ = f"{name}-{pattern.replace('.', '_')}"
        listen: Any = self.app.on
        listen(pattern, batch=BATCH, **{"concurrency": 1, **options, "bus": bus})(describe(store, "message store"))

    def _put(self, message: Message[Any], state: State) -> None:
        due, key = message.time + self.keep, _key(message)
        state.put(self.copies, key, _pack(replace(message, data=UNSET)), due=due)
        state.put(self.by_id, _text(message.id), key, due=due)
        state.put(self.by_topic, f"{message.topic}/{key}", "", due=due)
        if message.correlation_id is not None:
            state.put(self.by_correlation, f"{_text(message.correlation_id)}/{key}", "", due=due)

    async def get(self, id: str, /) -> Message[Any] | None:
        """The message with this id; its ``body`` is as it was published, it has no ``data``. The app is open."""
        store, _ = store_of(self.app, self.bus)
        found = await store.records(self.by_id.name, [_text(id)])
        copies = await self._copies([self.by_id.decode(record.value) for record in found])
        return copies[0] if copies else None

    async def find(
        self, *, topic: str = ">", correlation: str = "", since: float = 0.0, until: float = FOREVER, limit: int = 100
    ) -> list[Message[Any]]:
        """Messages by time, the oldest first, at most ``limit``: of a topic or pattern, of the correlation id, whose
        time (Unix seconds) is at least ``since`` and less than ``until``.

        One topic, or a correlation id, is found without looking at the others; a
        pattern looks at all of that time.
        """
        pattern, found = check_pattern(topic), list[Message[Any]]()
        table, prefix = self.copies, ""
        if correlation:
            table, prefix = self.by_correlation, f"{_text(correlation)}/"  # type: ignore[assignment]
        elif not is_pattern(pattern):
            table, prefix = self.by_topic, f"{pattern}/"  # type: ignore[assignment]
        after = f"{prefix}{_time(since)}"
        while page := await self._scan(table, prefix, after):
            after = page[-1].key
            keys = [record.key.removeprefix(prefix) for record in page]
            copies = [_unpack(r.value) for r in page] if table is self.copies else await self._copies(keys)
            for message in copies:
                if message.time >= until or len(found) == limit:
                    return found
                if since <= message.time and matches(pattern, message.topic):
                    found.append(message)
        return found[:limit]

    async def purge(self, before: float) -> int:
        """Remove what was published before that time (Unix seconds); how many messages."""
        store, _ = store_of(self.app, self.bus)
        removed = 0
        for table in (self.by_id, self.by_topic, self.by_correlation, self.copies):
            removed = 0
            while some := await store.purge(table.name, nextafter(before + self.keep, 0.0)):
                removed += some
        return removed

    async def _scan(self, table: Table[Any], prefix: str, after: str) -> Sequence[Record]:
        store, _ = store_of(self.app, self.bus)
        return await store.scan(table.name, prefix, after, PAGE)

    async def _copies(self, keys: Sequence[str]) -> list[Message[Any]]:
        store, _ = store_of(self.app, self.bus)
        found = await store.records(self.copies.name, keys)
        return [_unpack(record.value) for record in sorted(found, key=lambda record: record.key)]


def _key(message: Message[Any]) -> str:
    return f"{_time(message.time)}/{_text(message.id)}"


def _time(moment: float) -> str:
    """Unix seconds that sort as text."""
    return f"{moment:018.6f}"


def _text(text: str) -> str:
    """Any id as a part of a key."""
    return token(text) if text else "-"
