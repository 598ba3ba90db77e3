"""Virtual time."""

from __future__ import annotations

import asyncio
import time

import pytest

from tidings.kernel.clock import current_clock
from tidings.testing import VirtualLoop, run_virtual


def test_hours_pass_at_once() -> None:
    async def main() -> float:
        clock = current_clock()
        before, wall = clock.monotonic(), clock.now()
        await asyncio.sleep(36_000)
        assert clock.now() - wall == pytest.approx(36_000, abs=0.001)
        return clock.monotonic() - before

    began = time.perf_counter()
    assert run_virtual(main()) == pytest.approx(36_000, abs=0.001)
    assert time.perf_counter() - began < 30  # not hours


def test_timers_fire_in_order() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def after(delay: float, name: str) -> None:
            await asyncio.sleep(delay)
            seen.append(name)

        await asyncio.gather(after(3, "c"), after(1, "a"), after(2, "b"), after(1, "a2"))
        return seen

    assert run_virtual(main()) == ["a", "a2", "b", "c"]


def test_timeouts_are_virtual() -> None:
    async def main() -> None:
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run_virtual(main())


def test_same_start_every_time() -> None:
    async def main() -> tuple[float, float]:
        return current_clock().now(), asyncio.get_running_loop().time()

    assert run_virtual(main()) == run_virtual(main())


def test_a_look_at_the_clock_takes_a_moment() -> None:
    """Code that takes turns by the clock does take turns."""

    async def main() -> None:
        clock = current_clock()
        end = clock.monotonic() + 0.001
        for _ in range(2000):
            if clock.monotonic() > end:
                return
        raise AssertionError("time stands still")

    run_virtual(main())


def test_threads_get_patience() -> None:
    async def main() -> str:
        return await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 5)

    assert run_virtual(main(), patience=0.5) == "done"


def test_advance_is_a_blocked_loop() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(1, seen.append, "timer")
        loop.advance(10)
        seen.append("after")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return seen

    assert run_virtual(main()) == ["after", "timer"]
