"""Suspects run one at a time per process, over all groups and buses.

A suspect may be the message that kills its process; if two ran at once, a crash would not say which. Each is marked
just before its handler starts; a mark that a dead process leaves behind is one crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock

from .settling import Settling
from .transport import Consumer, Delivery

PERMIT = Lock()  # a thread lock: a process may run several event loops
TURN = 0.001  # seconds between looks at the permit


async def recover(consumer: Consumer, settling: Settling, start: Callable[[], None]) -> None:
    """Let suspects run, one by one, for ever; ``start`` rouses a worker."""
    while True:
        await settling.suspected.wait()
        settling.suspected.clear()
        while settling.lanes.suspects:
            while not PERMIT.acquire(blocking=False):  # noqa: ASYNC110  # no event spans several loops
                await asyncio.sleep(TURN)
            try:
                if settling.lanes.suspects:
                    await _recover_one(settling.lanes.suspects.popleft(), consumer, settling, start)
            finally:
                PERMIT.release()


async def _recover_one(delivery: Delivery, consumer: Consumer, settling: Settling, start: Callable[[], None]) -> None:
    if settling.may_start(delivery):
        if await consumer.mark(delivery):
            settling.suspect = (delivery, settled := asyncio.get_running_loop().create_future())
            settling.lanes.ready.appendleft(delivery)
            start()
            await settled
            return
        settling.held -= 1
    settling.lanes.done(delivery)
