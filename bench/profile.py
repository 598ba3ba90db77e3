"""Where the time of one subject goes: ``python -m bench.profile <engine> <work> [--subject raw] [--messages N]``.

The work runs once unwatched, which gives its rate, and once under cProfile in each thread that is started for it. Only
the part that is timed is watched in the main thread.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

from . import servers
from .engines import ENGINES, EVENTS, FASTSTREAM, OURS, RAW, libraries, library, size, works

LEAST = 0.05  # function calls a message that make another thread worth showing: those at rest have fewer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("work", choices=works.RATES)
    parser.add_argument("--subject", choices=(OURS, RAW, EVENTS, FASTSTREAM), default=OURS)
    parser.add_argument("--messages", type=int, help="default: as many as in `bench engines`")
    parser.add_argument("--lines", type=int, default=30, help="functions to show")
    parser.add_argument("--sort", choices=("tottime", "cumtime", "ncalls"), default="tottime")
    parser.add_argument("--rate", action="store_true", help="only the rate, without a profile")
    parser.add_argument("--save", metavar="FILE", help="the main thread's profile, for snakeviz and the like")
    given = parser.parse_args()
    if given.subject not in libraries(given.engine):
        parser.error(f"{given.engine} has no {given.subject}")
    return given


@contextmanager
def threads_profiled() -> Iterator[dict[str, cProfile.Profile]]:
    """Profiles of the threads that start meanwhile, by name; one that has not ended has one, too.

    From Python 3.12 on there is but one profiler at a time, which sees all threads.
    """
    found = dict[str, cProfile.Profile]()

    def started(frame: FrameType, event: str, argument: Any) -> None:
        """The first event of a thread: from here on its profiler takes this function's place."""
        sys.setprofile(None)
        with suppress(ValueError):
            (profile := cProfile.Profile()).enable()
            found[f"{threading.current_thread().name} ({len(found)})"] = profile

    threading.setprofile(started)
    try:
        yield found
    finally:
        threading.setprofile(None)


def once(given: argparse.Namespace, url: str, messages: int, watch: Any) -> float:
    """Messages a second."""
    gc.collect()
    at = library(given.engine, given.subject)(url, works.place())
    return asyncio.run(works.rate(given.work, at, messages, watch))


def show(name: str, stats: pstats.Stats, given: argparse.Namespace, messages: int) -> None:
    took: float = stats.total_tt  # type: ignore[attr-defined]
    print(f"\n{name}: {took:.2f} s, {took / messages * 1e6:.2f} µs a message, waiting included")
    stats.sort_stats(given.sort).print_stats(given.lines)


def main() -> None:
    given = arguments()
    messages = given.messages or size(given.engine, given.subject, given.work)
    with servers.engine(given.engine) as url:
        rate = once(given, url, messages, nullcontext())
        print(f"{given.engine}, {given.subject}, {given.work}: {rate:,.0f} msg/s of {messages:,} messages", flush=True)
        if given.rate:
            return
        watch = cProfile.Profile()
        with threads_profiled() as threads:
            print(f"under the profiler: {once(given, url, messages, watch):,.0f} msg/s")
    main_thread = pstats.Stats(watch)
    if given.save:
        main_thread.dump_stats(given.save)
    show("main thread", main_thread, given, messages)
    for name, profile in threads.items():
        stats = pstats.Stats(profile)
        if stats.total_calls > LEAST * messages:  # type: ignore[attr-defined]
            show(name, stats, given, messages)


if __name__ == "__main__":
    main()
