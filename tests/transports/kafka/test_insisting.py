"""What passes by itself is waited for: a coordinator that moves must not end an app that is just starting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidings.kernel.clock import SYSTEM
from tidings.kernel.errors import BusError, BusUnavailable
from tidings.transports.kafka import Kafka
from tidings.transports.kafka.exchanges import prove
from tidings.transports.kafka.records import Names
from tidings.transports.kafka.topics import Topics

PASSING = [KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TIMED_OUT]
PASSING += [KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_CONTROLLER, KafkaError.NETWORK_EXCEPTION]
LASTING = [KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.INVALID_GROUP_ID]


class Asked:
    """Fails so often, with this."""

    def __init__(self, code: int, times: float) -> None:
        self.code, self.times, self.count = code, times, 0

    async def __call__(self) -> str:
        self.answer()
        return "answer"

    def answer(self, *given: Any) -> None:
        self.count += 1
        if self.count <= self.times:
            raise KafkaException(KafkaError(self.code))

    finish = answer
    proven = False


def topics(connect: float = 10.0) -> Topics:
    found = Topics()
    found.options, found.clock = Kafka(connect=connect), SYSTEM
    return found


def starting(asked: Asked, within: float) -> None:
    prove(asked, Names(""), within)  # type: ignore[arg-type]


def asking(asked: Asked, within: float) -> None:
    assert asyncio.run(topics(within).insist(asked, "it cannot be looked at")) == "answer"


@pytest.mark.parametrize("ask", [asking, starting])
@pytest.mark.parametrize("code", PASSING)
def test_what_passes_is_asked_for_again(ask: Callable[[Asked, float], None], code: int) -> None:
    ask(asked := Asked(code, 2), 10.0)
    assert asked.count == 3


@pytest.mark.parametrize("ask", [asking, starting])
@pytest.mark.parametrize("code", PASSING)
def test_but_not_for_ever(ask: Callable[[Asked, float], None], code: int) -> None:
    with pytest.raises(BusUnavailable):
        ask(Asked(code, float("inf")), 0.2)


@pytest.mark.parametrize("ask", [asking, starting])
@pytest.mark.parametrize("code", LASTING)
def test_what_does_not_pass_is_told_at_once(ask: Callable[[Asked, float], None], code: int) -> None:
    asked = Asked(code, 1)
    with pytest.raises(BusError) as told:
        ask(asked, 10.0)
    assert (asked.count, type(told.value)) == (1, BusError)


def test_what_is_an_answer_is_none_that_fails() -> None:
    asked = Asked(KafkaError.GROUP_ID_NOT_FOUND, 1)
    with pytest.raises(KafkaException):
        asyncio.run(topics().insist(asked, "it cannot be looked at", KafkaError.GROUP_ID_NOT_FOUND))
