"""Suspects run one at a time per process, over all groups and buses.

A suspect may be the message that kills its process; if two ran at once, a crash would not say which. Each is marked
just before its handler starts; a mark that a dead process leaves behind is one crash.
"""

from __future__ import annotations

import asyncio
from threading import Lock

from .errors import BusError
from .settling import AGAIN, Settling, log
from .transport import Consumer, Delivery

PERMIT = Lock()  # a thread lock: a process may run several event loops


async def recover(consumer: Consumer, settling: Settling) -> None:
    """Let suspects run, one by one, for ever."""
    while True:
        await settling.suspected.wait()
        settling.suspected.clear()
        while settling.lanes.suspects:
            while not PERMIT.acquire(blocking=False):  # noqa: ASYNC110  # no event spans several loops
                await asyncio.sleep(0.001)
            try:
                if settling.lanes.suspects:
                    await _recover_one(settling.lanes.suspects.popleft(), consumer, settling)
            finally:
                PERMIT.release()


async def _recover_one(delivery: Delivery, consumer: Consumer, settling: Settling) -> None:
    if settling.may_start(delivery):
        settling.lanes.marking = (delivery,)  # which may take longer than its lease
        marked = await _marked(delivery, consumer)
        settling.lanes.marking = ()
        if marked:
            settling.suspect = (delivery, settled := asyncio.Event())
            settling.lanes.ready.appendleft(delivery)
            if not settling.wake():
                settling.give_back()  # paused or stopped meanwhile: not with the permit in hand
            await settled.wait()
            return
        settling.held -= 1
    settling.lanes.done(delivery)
    settling.wake()  # there is room for another, and perhaps none left in hand


async def _marked(delivery: Delivery, consumer: Consumer) -> bool:
    while delivery.session.alive:
        try:
            return await consumer.mark(delivery)
        except BusError as error:
            log.warning("marking a suspect failed, trying again: %s", error)
            await asyncio.sleep(AGAIN)
    return False
