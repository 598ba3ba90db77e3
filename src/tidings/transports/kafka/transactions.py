"""Transactions of the broker: records and a group's offsets, both or nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tidings.transports._points import passed

from .records import Record

SOON = 0.25  # seconds in which records are stored, unless something is wrong
GRACE = 1.0  # seconds that a call may last longer than it was told to
SLICE = 0.05  # seconds between looks whether one was refused


REJECTED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INVALID_RECORD,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.POLICY_VIOLATION,
    KafkaError._PURGE_QUEUE,
}
"""Codes of what was surely not stored."""


class Transactions:
    """A producer for each name, which has one owner at a time; ``within`` so many seconds each is over.

    All methods are for threads that may wait.
    """

    def __init__(self, config: Mapping[str, Any], within: float) -> None:
        self.config, self.within = config, within
        self.producers: dict[str, Producer] = {}
        self.proven = False  # they work here

    def run(
        self, name: str, records: Sequence[Record], consumer: Consumer, offsets: list[TopicPartition]
    ) -> dict[int, Any]:
        """In the consumer's thread. Errors by index: then nothing was done, because of these records.

        Raises ``KafkaException``: then the offsets must be read anew to know; they can be, once ``sure`` returns.
        """
        self.sure(name)
        producer, errors = self.producers[name], dict[int, Any]()
        try:
            producer.begin_transaction()
            for index, record in enumerate(records):
                self._produce(producer, record, index, errors)
            self._stored(producer, errors, SOON)
            passed("transaction.produced")
            if not errors:
                group = consumer.consumer_group_metadata()
                self._asked(producer.send_offsets_to_transaction, offsets, group)
                self._stored(producer, errors, self.within)
            if not errors:
                passed("transaction.before")
                self._asked(producer.commit_transaction)
                passed("transaction.after")
                return {}
            errors = dict(errors)  # what is given up reports, too
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() not in REJECTED or not reason.txn_requires_abort():
                self._anew(name)
                raise
            errors = dict.fromkeys(range(len(records)), reason)
        self._anew(name)
        return errors

    def _anew(self, name: str) -> None:
        """End what is under way, one way or the other. (One that has aborted drops what it is given next.)"""
        self.forget(name)
        self.begin(name)

    def _asked(self, call: Callable[..., Any], *given: Any) -> None:
        """Call with a time limit, which the client does not always keep: it may wait for ever for an answer of a
        broker that died. Such a call is left behind, with its thread and its producer, which the next one fences.
        """
        done: Future[None] = Future()
        threading.Thread(target=_call, args=(done, call, *given, self.within), daemon=True).start()
        try:
            done.result(self.within + GRACE)
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer")) from None

    def _produce(self, producer: Producer, r: Record, index: int, errors: dict[int, Any]) -> None:
        report = partial(_reported, errors, index)
        while not errors:
            try:
                producer.produce(r.topic, r.value, r.key, r.partition, report, None, 0, r.headers)
                return
            except BufferError:  # the queue is full: until there is room
                producer.poll(SLICE)
            except KafkaException as error:
                errors[index] = error.args[0]

    def _stored(self, producer: Producer, errors: dict[int, Any], within: float) -> None:
        """Wait for all, until one is refused: then the others are not sent at all."""
        end = time.monotonic() + within
        while len(producer) and not errors and time.monotonic() < end:
            producer.flush(SLICE)

    def sure(self, name: str) -> None:
        """Whatever was under way by that name is over: there is a producer, and had it to be made, it fenced others."""
        if name not in self.producers:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Ends what a former owner left under way: nobody waits until it times out."""
        within = int(self.within * 1000)
        limits = {"transaction.timeout.ms": within, "delivery.timeout.ms": within}
        producer = Producer({**self.config, "transactional.id": name, **limits})
        self._asked(producer.init_transactions)
        self.producers[name] = producer

    def finish(self, name: str) -> None:
        """End what a dead owner left under way."""
        known = name in self.producers
        self.begin(name)
        if not known:
            self.forget(name)

    def forget(self, name: str) -> None:
        self.producers.pop(name, None)


def _call(done: Future[None], call: Callable[..., Any], *given: Any) -> None:
    try:
        call(*given)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _reported(errors: dict[int, Any], index: int, error: KafkaError | None, message: Any) -> None:
    if error is not None:
        errors[index] = error
