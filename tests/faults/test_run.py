"""Runs that cannot be judged, or go wrong by the nemesis's own fault, say so, and never accuse the bus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidings import App
from tidings.kernel.errors import InvalidOption
from tidings.testing.faults import Nemesis, Report, Run, Scenario, perform


def scenario(folder: Path, **more: Any) -> Scenario:
    return Scenario(url=f"sqlite:///{folder}/bus.db?lease=1s", **{"messages": 60, "pace": 0.0, **more})


async def play(folder: Path, nemesis: Nemesis | None = None, *, within: float = 30.0, **more: Any) -> Report:
    return await perform(scenario(folder, **more), folder / "run", nemesis, seed=1, within=within)


def rules(report: Report) -> set[str]:
    return {violation.rule for violation in report.verdict.violations}


async def gone(run: Run) -> None:
    await run.until(lambda: "p0" in run.ended, "p0 has finished")
    run.kill("p0")


async def gone_too(run: Run) -> None:
    await run.until(lambda: run.count("ready", "c0"), "c0 is ready")
    await run.terminate("c0")
    await run.terminate("c0")


async def wrong(run: Run) -> None:
    assert run.count("ready") > 100, "never so many"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nemesis", "what"), [(gone, "p0 does not run now"), (gone_too, "c0 does not run now"), (wrong, "never so many")]
)
async def test_a_nemesis_that_raises_is_told(nemesis: Nemesis, what: str, tmp_path: Path) -> None:
    report = await play(tmp_path, nemesis)
    assert rules(report) == {"error", "stuck"}, report
    assert what in str(report)
    assert f"{__file__}:" in str(report)


@pytest.mark.slow
async def test_a_run_that_had_no_time_lost_nothing(tmp_path: Path) -> None:
    report = await play(tmp_path, within=2.0, messages=400, pace=0.2)
    assert report.verdict.lost == 0
    assert rules(report) == {"stuck"}, report
    assert "not over within 2 s" in str(report)


@pytest.mark.slow
async def test_a_damaged_bus_is_told(tmp_path: Path) -> None:
    async def scratch(run: Run) -> None:
        await run.until(lambda: run.idle and "p0" in run.ended and "p1" in run.ended, "all is handled")
        for name in list(run.consumers):
            await run.terminate(name)
        (tmp_path / "bus.db").write_bytes(b"Dear diary, " * 500)
        (tmp_path / "bus.db-wal").unlink(missing_ok=True)

    report = await play(tmp_path, scratch)
    assert rules(report) == {"error", "stuck"}, report
    assert "looking into the bus" in str(report)


@pytest.mark.slow
async def test_a_point_that_does_not_exist_is_inconclusive(tmp_path: Path) -> None:
    report = await play(tmp_path, points={"c0": ("spi.setle.before=kill",)}, expects=("killd",))
    assert rules(report) == {"missed", "nothing"}, report


async def test_a_folder_or_a_bus_that_was_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "left").touch()
    with pytest.raises(InvalidOption, match="is not empty"):
        await play(tmp_path)
    (tmp_path / "run" / "left").unlink()

    app = App("faults", scenario(tmp_path).url)

    @app.on("orders.placed")
    async def bill(order: dict[str, int]) -> None: ...

    async with app:
        pass
    with pytest.raises(InvalidOption, match="earlier run"):
        await play(tmp_path)


async def test_a_bus_of_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="one process"):
        await perform(Scenario(url="memory://"), tmp_path)
