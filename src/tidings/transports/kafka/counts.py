"""How many records a partition holds, where offsets do not tell: the end of a transaction has one, too.

Only for what is small and worth it: dead letters. What was counted is remembered, so each record is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition
from msgspec import Struct

from .records import Place

MOST = 10_000  # offsets that are read at once; beyond these they are counted as records


class Count(Struct):
    """Of the records from ``first`` to ``end``."""

    first: int
    end: int
    records: int


class Counts:
    """Of partitions."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.known: dict[Place, Count] = {}
        self.lock = threading.Lock()

    def look(self, bounds: Mapping[Place, tuple[int, int]]) -> dict[Place, int]:
        """How many lie between these offsets. In a thread."""
        with self.lock:
            return self._look(bounds)

    def _look(self, bounds: Mapping[Place, tuple[int, int]]) -> dict[Place, int]:
        for place, (first, end) in bounds.items():
            count = self.known.get(place)
            if count is None or count.first != first or count.end > end:
                self.known[place] = Count(first, max(first, end - MOST), max(0, end - MOST - first))
        behind = {place: end for place, (_, end) in bounds.items() if self.known[place].end < end}
        if behind:
            self._read(behind)
        return {place: self.known[place].records for place in bounds}

    def _read(self, ends: dict[Place, int]) -> None:
        consumer = Consumer(self.config)
        try:
            consumer.assign([TopicPartition(*place, self.known[place].end) for place in ends])
            while ends and (raw := consumer.poll(10)) is not None:
                error, place = raw.error(), (str(raw.topic()), int(raw.partition() or 0))
                if place not in ends:
                    continue
                count = self.known[place]
                if error is None:
                    count.records += 1
                    count.end = int(raw.offset() or 0) + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    count.end = max(count.end, ends[place])
                if count.end >= ends[place] or error is not None:
                    del ends[place]
        finally:
            consumer.close()
