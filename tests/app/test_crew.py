"""How many threads of a pool may run: decided by what they use, no thread in sight."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tidings.executors import Crew

Workload = Callable[[int], tuple[float, float]]
"""How many threads run, to how many processors they, and all of the process, keep busy."""


def computing(threads: int) -> tuple[float, float]:
    return threads / (threads + 1), 1.0  # of Python: they share the GIL with a busy event loop


def waiting(threads: int) -> tuple[float, float]:
    return 0.02 * threads, 0.02 * threads


def releasing(threads: int) -> tuple[float, float]:
    return min(2.0, threads), min(2.0, threads)  # hashing, on two processors


def half_waiting(threads: int) -> tuple[float, float]:
    return min(1.0, 0.5 * threads), min(1.0, 0.5 * threads)  # two of them saturate the GIL


def beside_a_busy_loop(threads: int) -> tuple[float, float]:
    return 0.02 * threads, 1.0  # they wait; it is the loop that computes


def allowed(workload: Workload, looks: int, most: int = 8, start: int | None = None) -> list[int]:
    """How many threads were allowed after each of so many looks."""
    crew, seen = Crew(most), list[int]()
    crew.allowed = start or most
    for n in range(looks):
        crew.decide(*workload(crew.allowed), crew.allowed, n * 0.02)
        seen.append(crew.allowed)
    return seen


@pytest.mark.parametrize(
    ("workload", "threads"),
    [(computing, 1), (waiting, 8), (releasing, 8), (half_waiting, 2), (beside_a_busy_loop, 8)],
)
def test_as_many_as_do_as_much(workload: Workload, threads: int) -> None:
    seen = allowed(workload, looks=5_000)
    assert seen.count(threads) > 0.98 * len(seen)


def test_those_that_compute_are_few_at_once() -> None:
    assert allowed(computing, looks=3)[-1] == 1


@pytest.mark.parametrize("workload", [waiting, releasing, half_waiting])
def test_a_workload_that_changes_gets_its_threads_back(workload: Workload) -> None:
    assert allowed(workload, looks=600, start=1)[-1] == allowed(workload, looks=600)[-1]


def test_a_thousand_threads_that_wait_are_there_at_once() -> None:
    assert set(allowed(waiting, looks=10, most=1000)) == {1000}


def test_threads_that_block_keep_nobody_out() -> None:
    """Seven wait for long, and one computed: while the process idles, others may run."""
    crew = Crew(8)
    crew.decide(0.0, 0.5, 8, 0.01)
    crew.decide(1.0, 1.0, 8, 0.02)
    assert crew.allowed == 1
    for n in range(5):
        assert crew.allowed == 1, "one look may be mistaken"
        crew.decide(0.0, 0.1, 7, 0.04 + n * 0.02)
    assert crew.allowed == 8


def test_one_thread_is_one_thread() -> None:
    assert set(allowed(computing, looks=2_000, most=1)) == {1}
