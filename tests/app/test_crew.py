"""How many threads of a pool may run: decided by what they used, no thread in sight."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tidings.executors import Crew

Workload = Callable[[int], float]
"""How many threads run, to how many processors they keep busy."""


def computing(threads: int) -> float:
    return 1.0  # of Python: all of them share the GIL


def waiting(threads: int) -> float:
    return 0.02 * threads


def releasing(threads: int) -> float:
    return min(2.0, threads)  # hashing, on two processors


def half_waiting(threads: int) -> float:
    return min(1.0, 0.5 * threads)  # two of them saturate the GIL


def settled(workload: Workload, most: int = 8, calls: int = 2000, start: int | None = None) -> set[int]:
    """The numbers of threads that were allowed in the second half of so many calls of 20 ms."""
    crew, now, seen = Crew(most), 0.0, list[int]()
    crew.allowed = start or most
    for _ in range(calls):
        busy = crew.allowed
        now += 0.02 / busy
        crew.record(0.02 * workload(busy) / busy, 0.02, busy, now)
        seen.append(crew.allowed)
    return set(seen[calls // 2 :])


@pytest.mark.parametrize(
    ("workload", "allowed"), [(computing, {1}), (waiting, {8}), (releasing, {8}), (half_waiting, {2})], ids=str
)
def test_as_many_as_do_as_much(workload: Workload, allowed: set[int]) -> None:
    assert settled(workload, calls=400) == allowed


@pytest.mark.parametrize("workload", [waiting, releasing])
def test_a_workload_that_changes_gets_its_threads_back(workload: Workload) -> None:
    assert settled(workload, calls=8000, start=1) == {8}


def test_one_thread_is_one_thread() -> None:
    assert settled(computing, most=1) == {1}


def test_calls_that_began_before_a_change_do_not_count() -> None:
    crew = Crew(8)
    for _ in range(24):
        crew.record(0.0025, 0.02, 8, 1.0)
    assert crew.allowed == 4
    for _ in range(4):
        crew.record(0.02, 0.02, 4, 1.0)
    for _ in range(8):
        crew.record(0.005, 0.02, 4, 1.0)
    assert crew.allowed == 2
