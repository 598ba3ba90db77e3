"""The whole loop on the memory bus: receive, decode, a no-op typed handler, settle. Beside it the bare floor."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec
from msgspec import Struct

import tidings
from tidings import App, Topic

from .harness import Figure, Scenario, Subject
from .payload import Order, body, order, order_model

MESSAGES = 90_000  # the memory bus retains 100,000
OURS = str(Path(tidings.__file__).parent)


async def whole(payload: type[Any], example: Any, messages: int, key: bool = False) -> Sequence[float]:
    """Microseconds per message, from a backlog."""
    app, topic = App("bench", "memory://"), Topic("orders.placed", payload)

    async def noop(order: Any) -> None:
        return None

    noop.__annotations__["order"] = payload
    app.on(topic)(noop)
    async with app:
        stats = app.stats()["bench.noop"]
        app.pause("bench.noop")
        for start in range(0, messages, 1000):
            keys = [f"k{n % 5000}" if key else None for n in range(start, start + 1000)]
            await app.publish_many([topic(example, key=one) for one in keys])
        began = time.perf_counter()
        app.pause("bench.noop", False)
        while stats.handled < messages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return ((time.perf_counter() - began) / messages * 1e6,)


async def bare(decode: Callable[[bytes], Any], messages: int) -> Sequence[float]:
    """The floor: decode, and await the function."""

    async def noop(order: Any) -> None:
        return None

    bodies = [body(n) for n in range(messages)]
    began = time.perf_counter()
    for text in bodies:
        await noop(decode(text))
    return ((time.perf_counter() - began) / messages * 1e6,)


class Passage(Struct):
    """What one message passes."""

    functions: set[str]  # distinct ones of ours
    comprehensions: int  # beside them
    frames: int  # ours, under the handler


async def passed() -> Passage:
    """What one message passes from receive to settle. Comprehensions are counted apart: Python 3.12 inlines most."""
    app, topic = App("bench", "memory://"), Topic("orders.placed", Order)
    seen: set[CodeType] = set()
    depth = 0

    @app.on(topic)
    async def noop(order: Order) -> None:
        nonlocal depth
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            depth += frame.f_code.co_filename.startswith(OURS)
            frame = frame.f_back

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            seen.add(frame.f_code)

    async with app:
        stats = app.stats()["bench.noop"]
        await asyncio.sleep(0.01)  # until the worker waits in receive
        await app.publish(topic, order())
        sys.setprofile(profile)
        try:
            while not stats.handled:  # noqa: ASYNC110
                await asyncio.sleep(0)
        finally:
            sys.setprofile(None)
    inner = {code for code in seen if code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")}
    named = {f"{Path(c.co_filename).relative_to(OURS)}:{c.co_firstlineno} {c.co_qualname}" for c in seen - inner}
    return Passage(named, len(inner), depth)


def notes() -> str:
    found = asyncio.run(passed())
    count = f"one message from receive to settle: {len(found.functions)} distinct functions of ours (budget ≤ 40)"
    beside = f"and {found.comprehensions} comprehensions in them"
    frames = f"{found.frames} frames of ours under the handler (budget ≤ 8)"
    return "\n  ".join((f"{count} {beside}; {frames}", *sorted(found.functions)))


def scenario(quick: bool) -> Scenario:
    messages = 10_000 if quick else MESSAGES

    def subject(name: str, measure: Callable[[], Coroutine[Any, Any, Sequence[float]]], **budget: Any) -> Subject:
        return Subject(name, (Figure("per message", "µs", **budget),), lambda: asyncio.run(measure()))

    def model() -> tuple[Any, Any]:
        made = order_model()
        return made, made.model_validate(msgspec.to_builtins(order()))

    return Scenario(
        (
            subject("bare, Struct", lambda: bare(msgspec.json.Decoder(Order).decode, messages)),
            subject("Struct", lambda: whole(Order, order(), messages), at_most=1.5, ratio_to=("bare, Struct",)),
            subject(
                "Struct, 5,000 keys", lambda: whole(Order, order(), messages, key=True), ratio_to=("bare, Struct",)
            ),
            subject("bare, pydantic", lambda: bare(order_model().model_validate_json, messages)),
            subject("pydantic", lambda: whole(*model(), messages), at_most=3.0, ratio_to=("bare, pydantic",)),
        ),
        rounds=7,
        notes=notes,
    )
