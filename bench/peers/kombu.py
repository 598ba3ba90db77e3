"""kombu's ``filesystem://`` transport: a file for each message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from kombu import Connection, Consumer, Message, Producer, Queue

from ..payload import Order
from ._shared import PATIENCE, POLL, Tally, accepted, encode, in_threads, orders

NAME = "kombu (filesystem)"
DURABLE = (
    "nothing is synced, and it has no setting for it: a message survives its process, not a power loss. Its file is "
    "taken away when it is fetched, before the ack: a crash loses what is in hand"
)
_queue = Queue("orders", routing_key="orders")

# No end_to_end and no latency: a consumer takes a file that its publisher is still writing, fails to decode the half
# of it, and the message is gone (celery/kombu#1551). Publishing and consuming at once loses messages within a second.


def VERSION() -> str:
    return f"kombu {version('kombu')}"


def _messages(folder: Path) -> Path:
    return folder / "messages"


@contextmanager
def _connection(folder: Path) -> Iterator[Connection]:
    """``store_processed``: a fetched file is renamed within the folder; else it goes through the temporary folder."""
    messages, processed, control = _messages(folder), folder / "processed", folder / "control"
    for each in (messages, processed, control):
        each.mkdir(exist_ok=True)
    options = {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "store_processed": True,
        "processed_folder": str(processed),
        "control_folder": str(control),
        "polling_interval": POLL,
    }
    with Connection("filesystem://", transport_options=options) as connection:
        _queue(connection.default_channel).declare()
        yield connection


def _publish(folder: Path, of: Sequence[Order]) -> None:
    """On a connection of its own: they are not for sharing between threads."""
    with _connection(folder) as connection:
        producer = Producer(connection.default_channel, exchange=_queue.exchange, routing_key="orders")
        for order in of:
            producer.publish(encode(order), content_type="application/json", content_encoding="utf-8")


def _waiting(folder: Path) -> int:
    return sum(1 for _ in _messages(folder).iterdir())


def concurrent(folder: Path, messages: int, publishers: int) -> float:
    """Threads. There is no asyncio interface."""
    rate = in_threads(lambda part: _publish(folder, part), messages, publishers)
    accepted(_waiting(folder), messages // publishers * publishers)
    return rate


def publish(folder: Path, messages: int) -> float:
    whole = orders(messages)
    began = time.perf_counter()
    _publish(folder, whole)
    took = time.perf_counter() - began
    accepted(_waiting(folder), messages)
    return messages / took


def _handling(tally: Tally) -> Callable[[Message], None]:
    def handle(message: Message) -> None:
        tally.take(message.body)
        message.ack()

    return handle


def backlog(folder: Path, messages: int) -> float:
    """Each fetch lists and sorts the whole folder: the rate falls as the backlog grows."""
    _publish(folder, orders(messages))
    tally, began = Tally(messages), time.perf_counter()
    with (
        _connection(folder) as connection,
        Consumer(connection.default_channel, [_queue], on_message=_handling(tally)),
    ):
        while tally.more():
            connection.drain_events(timeout=PATIENCE)
        took = time.perf_counter() - began
    tally.check(left=_waiting(folder))
    return messages / took
