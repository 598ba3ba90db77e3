"""Live copies settle nothing, but what their handlers send is published."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tidings.kernel.message import Message
from tidings.kernel.transport import Failure, Settlement

Publish = Callable[[Sequence[Message[Any]]], Awaitable[Sequence[Failure]]]


async def answers(publish: Publish, settlements: Sequence[Settlement]) -> Sequence[Failure]:
    """The outputs of each settlement are published together; what failed."""
    failures = []
    for index, settlement in enumerate(settlements):
        if settlement.outgoing and (failed := await publish(settlement.outgoing)):
            failures.append(Failure(index, failed[0].kind, failed[0].error))
    return failures
