"""The suite fails on every mutant, on every bus: the test it names dies of it, and lives without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.conformance.engines import ENGINES, capabilities, engine_bus

from tidings.testing.conformance import Bus, Conformance
from tidings.testing.conformance.bus import has
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


def check(mutant: type[Mutant], whole: Bus, broken: Bus) -> None:
    test: Callable[[Bus], None] = getattr(Suite(), mutant.killer)
    test(wrapped(whole, Mutant))  # it is the mutation that kills, not the wrapper
    with pytest.raises((AssertionError, TimeoutError, ValueError, pytest.fail.Exception)):
        test(wrapped(broken, mutant))


@pytest.mark.parametrize("kind", BUSES)
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutant_is_killed(kind: str, mutant: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    check(MUTANTS[mutant], BUSES[kind](tmp_path / "whole"), BUSES[kind](tmp_path / "broken"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what a mutant leaks is not closed
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
@pytest.mark.parametrize("engine", ENGINES)
def test_mutant_is_killed_on_a_server(engine: str, mutant: str) -> None:
    kind = MUTANTS[mutant]
    if kind.needs and not has(capabilities(engine), kind.needs):
        pytest.skip(f"{engine} has no {kind.needs}, and is tested to refuse it")
    if mutant == "no-renewal" and capabilities(engine).lease in ("connection", "assignment"):
        pytest.skip(f"{engine}: what is held is held until its {capabilities(engine).lease} ends; nothing is renewed")
    check(kind, engine_bus(engine), engine_bus(engine))
