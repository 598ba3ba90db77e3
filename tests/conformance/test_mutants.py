"""The suite fails on every mutant, on every bus: the test it names dies of it, and lives without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.buses import BUSES
from tidings.testing.conformance.mutants import MUTANTS, Mutant, MutantOptions

WANTED = """
ack-early never-redeliver reverse swap-one-key duplicate-all drop-1-in-1000 drop-headers ignore-delay reset-count
leak-on-close lose-buffer-on-close truncate-silently no-fence no-renewal settle-before-publish swallow-partial-failure
>-matches-zero miss-new-topic replay-to-everyone release-counts
"""


class Suite(Conformance):
    __test__ = False


def wrapped(bus: Bus, mutant: type[Mutant]) -> Bus:
    crash = bus.crash
    return replace(
        bus,
        mutant=getattr(mutant, "name", ""),
        patience=0.3,
        options=lambda lease: MutantOptions(mutant, bus.options(lease)),
        crash=(lambda transport: crash(transport.inner)) if crash is not None else None,
    )


def test_every_mutant_is_there() -> None:
    assert set(WANTED.split()).issubset(MUTANTS)


@pytest.mark.parametrize("kind", BUSES)
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutant_is_killed(kind: str, mutant: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    test: Callable[[Bus], None] = getattr(Suite(), MUTANTS[mutant].killer)
    test(wrapped(BUSES[kind](tmp_path / "whole"), Mutant))  # it is the mutation that kills, not the wrapper
    with pytest.raises((AssertionError, TimeoutError, ValueError, pytest.fail.Exception)):
        test(wrapped(BUSES[kind](tmp_path / "broken"), MUTANTS[mutant]))
