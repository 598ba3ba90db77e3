"""The harness of ``bench/``, with subjects whose figures are known. Nothing here depends on how long anything takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from bench.bare import Bare
from bench.harness import ROOT, SCENARIOS, Figure, Measured, Measurement, Report, Row, rows, run, scenario
from bench.histogram import counted, timed, together
from bench.machine import machine
from bench.plots import bars, draw
from bench.show import beside as compared
from bench.show import budget_of, failed, table

from bench import beside, keep
from tidings.transports.sqlite.writer import SYNC

SLOWER = {"a": 20.0, "b": 5.0}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "log"


@pytest.fixture(scope="module")
def fakes(log: Path) -> Iterator[None]:
    """Measurements find the fakes, and where they write down their turns."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(Path(__file__).parent)
        patch.setenv("FAKES_LOG", str(log))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))))
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def report(fakes: None) -> Report:
    """Three rounds of the fakes, each measurement in a process of its own."""
    return run("fakes", "fakes", False, None, lambda line: None)


def subject(report: Report, name: str) -> Measured:
    return next(found for found in report.subjects if found.name == name)


def row(report: Report, name: str, figure: str) -> Row:
    return next(r for r in rows(report) if (r.subject.name, r.figure.name) == (name, figure))


# -- measuring


def test_rounds_are_interleaved(report: Report, log: Path) -> None:
    first = ["ours", "theirs", "broken", "grown 10", "grown 100", "late"]
    later = ["ours", "theirs", "grown 10", "late"]  # what failed is not tried again, what takes long is measured once
    assert log.read_text().splitlines() == first + later + later


def test_values_and_median(report: Report) -> None:
    assert row(report, "ours", "rate").values == [1.0, 7.0, 11.0]
    assert row(report, "ours", "rate").median == 7.0
    assert row(report, "100", "size").values == [500.0]


def test_each_measurement_says_what_it_used(report: Report) -> None:
    for measured in report.subjects:
        assert all(one.cpu >= 0 and one.rss > 1 for one in measured.rounds)


def test_a_failure_has_its_reason_and_stops_nobody(report: Report) -> None:
    assert row(report, "broken", "rate").verdict == "failed"
    assert failed(report) == ["fakes: broken: LookupError: no server"]
    assert len(subject(report, "late").rounds) == 3


def test_what_is_around_all_measurements_is_there_for_each_and_gone_afterwards(report: Report) -> None:
    assert row(report, "within", "rate").values == [7.0]
    assert "FAKES_AROUND" not in os.environ


def test_notes(report: Report) -> None:
    shared, own = report.notes
    assert shared.startswith("others used ")
    assert own == "a note"


def test_notes_that_fail_lose_nothing(report: Report, log: Path) -> None:
    before = log.read_text()
    found = run("fakes", "fakes", True, 1, lambda line: None)
    log.write_text(before)
    assert found.notes[1] == "no notes: LookupError: lost"
    assert found.subjects[0].rounds


# -- judging


def test_ratio_within_the_run(report: Report) -> None:
    assert row(report, "ours", "cost").ratios == {"theirs": 2.5}
    assert row(report, "ours", "rate").ratios == {}


@pytest.mark.parametrize(
    ("name", "figure", "verdict"),
    [
        ("ours", "rate", "ok"),
        ("ours", "cost", "MISSED"),
        ("theirs", "rate", ""),
        ("late", "p50", "ok"),
        ("late", "p99", "MISSED"),
        ("late", "max", ""),
    ],
)
def test_verdicts(report: Report, name: str, figure: str, verdict: str) -> None:
    assert row(report, name, figure).verdict == verdict


def bar(values: dict[str, float], figure: Figure) -> Row:
    """``ours`` beside others, one round each."""
    subjects = [Measured(name, (figure,), rounds=[Measurement([value], 0.0, 1.0)]) for name, value in values.items()]
    return rows(Report("bar", "", subjects, []))[0]


def test_a_bar_holds_beside_each_of_several() -> None:
    figure = Figure("rate", "msg/s", ratio_to=("a", "b", "c"), ratio_at_least=3.0)
    assert bar({"ours": 30.0, "a": 10.0, "b": 1.0, "c": 2.0}, figure).verdict == "ok"
    missed = bar({"ours": 30.0, "a": 1.0, "b": 11.0, "c": 2.0}, figure)
    assert missed.verdict == "MISSED"
    assert compared(missed) == "2.73 × b, the closest of 3"
    assert budget_of(figure) == "≥ 3.00 ×"


def test_a_bar_with_nobody_beside_it_is_not_met() -> None:
    figure = Figure("rate", "msg/s", ratio_to=("gone",), ratio_at_least=3.0)
    assert bar({"ours": 30.0}, figure).verdict == "unknown"


# -- delays


def test_percentiles_of_delays(report: Report) -> None:
    assert subject(report, "late").rounds[0].values == [501.0, 991.0, 1000.0, 1000.0, 7.0]


def test_histogram_keeps_every_delay_within_a_bucket() -> None:
    delays = [0.0, 1e-9, 1e-6, *(1e-5 * 1.01**n for n in range(1000))]
    histogram = counted(delays)
    assert sum(histogram.counts.values()) == len(delays)
    ordered = sorted(delays)
    for part in (0.01, 0.5, 0.99, 1.0):
        exact = max(1e-6, ordered[math.ceil(part * len(ordered)) - 1])
        assert exact <= histogram.quantile(part) * (1 + 1e-9)
        assert histogram.quantile(part) <= exact * 2 ** (1 / 16) * (1 + 1e-9)
    assert sum(together([histogram, histogram]).counts.values()) == 2 * len(delays)


def test_no_delays_are_no_result() -> None:
    with pytest.raises(RuntimeError, match="nothing arrived"):
        timed([])


# -- showing and keeping


def test_table(report: Report) -> None:
    lines = table(report).splitlines()
    assert lines[0].split()[:4] == ["subject", "figure", "median", "min–max"]
    (cost,) = [line for line in lines if "cost" in line and line.startswith("ours")]
    assert "2.50 × theirs" in cost
    assert "MISSED" in cost
    assert next(line for line in lines if line.startswith("broken")).split()[3] == "–"
    assert "LookupError: no server" in table(report)


def test_markdown_table_has_a_cell_for_each_heading(report: Report) -> None:
    lines = table(report, markdown=True).splitlines()
    assert {line.count("|") for line in lines} == {10}


def test_json_has_every_value(report: Report, tmp_path: Path) -> None:
    kept = keep.started(["fakes"], machine())
    kept.reports.append(report)
    path = keep.every_value(kept, tmp_path / "out")
    read = msgspec.json.decode(path.read_bytes(), type=keep.Run)
    assert read.reports[0] == report
    assert sum(subject(read.reports[0], "late").rounds[0].histogram.counts.values()) == 1000  # type: ignore[union-attr]
    assert {"python", "sqlite", "processor", "disk", "commit"} <= read.machine.keys()


def test_plot_of_bars_lines_and_delays(report: Report, tmp_path: Path) -> None:
    kept = keep.started(["fakes"], {})
    kept.reports.append(report)
    (path,) = keep.plots(kept, tmp_path / "plots")
    assert path == tmp_path / "plots" / "fakes.png"
    assert path.read_bytes().startswith(PNG)


def test_nothing_measured_is_no_plot(tmp_path: Path) -> None:
    assert not draw(Report("none", "", [Measured("a", (Figure("b", "c"),), error="gone")], []), tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_results_are_appended(report: Report, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    kept = keep.started(["fakes", "--save"], {"python": "3"})
    kept.reports.append(report)
    keep.append(kept, results)
    text = results.read_text()
    assert text.startswith("# Results\n\n## ")
    assert "`python -m bench fakes --save`" in text
    assert "### fakes\n\n| subject |" in text
    assert "a note\n```\n" in text


def test_a_page_gets_what_was_measured_and_keeps_the_rest(report: Report, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        f"# Before\n\n{keep.BEGIN}\n### loop\n\nold loop\n\n### fakes\n\nold fakes\n\n{keep.END}\n\nafter\n"
    )
    kept = keep.started(["fakes"], {"python": "3"})
    kept.reports.append(report)
    keep.plots(kept, tmp_path / "plots")
    keep.fill(kept, page)
    keep.fill(kept, page)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith(f"{keep.END}\n\nafter\n")
    assert text.count("old loop") == text.count("### fakes") == text.count("![fakes](plots/fakes.png)") == 1
    assert "old fakes" not in text


def test_a_page_without_marks_is_refused(report: Report, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n")
    with pytest.raises(ValueError, match="bench:begin"):
        keep.fill(keep.started([], {}), page)
    assert page.read_text() == "# A page\n"


# -- the scenarios themselves


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_compare_with_subjects_of_their_own(name: str, quick: bool) -> None:
    found = scenario(SCENARIOS[name], quick)
    names = [one.name for one in found.subjects]
    assert len(set(names)) == len(names)
    assert {other for one in found.subjects for figure in one.figures for other in figure.ratio_to} <= set(names)
    assert all(one.at is None or found.grows for one in found.subjects)


def test_the_embedded_bus_is_compared_with_every_synced_peer_and_with_the_libraries_of_them() -> None:
    found = {one.name: one for one in beside.scenario(True).subjects}
    every, libraries = found[f"{beside.SQLITE}: backlog"].figures
    synced = [p for p in beside.peers() if p.module not in beside.UNSYNCED and "backlog" in p.works]
    assert every.ratio_to == tuple(f"{p.name}: backlog" for p in synced)
    assert libraries.ratio_to == tuple(f"{p.name}: backlog" for p in synced if p.module not in beside.SERVERS)
    assert every.ratio_at_least == libraries.ratio_at_least == 3.0
    assert {p.module for p in synced} == {"huey", "litequeue", "persist_queue", *beside.SERVERS}
    assert beside.DURABLE.keys() == {name for name, _ in beside.ours()}


def test_a_figure_beside_two_circles_has_two_lines_and_one_bar() -> None:
    rate = Figure("rate", "msg/s", ratio_to=("a", "b"), ratio_at_least=3.0, among="beside all")
    some = Figure("rate", "msg/s", ratio_to=("b",), ratio_at_least=3.0, among="beside some")
    ours = Measured("ours", (rate, some), rounds=[Measurement([30.0, 30.0], 0.0, 1.0)])
    others = [Measured(n, (Figure("rate", "msg/s"),), rounds=[Measurement([r], 0.0, 1.0)]) for n, r in SLOWER.items()]
    report = Report("circles", "", [ours, *others], [])
    assert [one.verdict for one in rows(report)] == ["MISSED", "ok", "", ""]
    assert "rate msg/s, beside all " in table(report)
    assert "rate msg/s, beside some " in table(report)
    ((height, _),) = bars(report)
    assert height == bars(Report("circles", "", [Measured("ours", (rate,), rounds=ours.rounds), *others], []))[0][0]


def test_the_floor_is_as_durable_as_the_embedded_bus(tmp_path: Path) -> None:
    """What is stored is synced at once, a claim or a settlement only when nothing was for a while."""
    floor, normal, full = Bare(tmp_path), 1, 2

    def synchronous(*, soft: bool, synced: float) -> int:
        floor.synced = synced
        floor.begin(soft=soft)
        found: int = floor.con.execute("PRAGMA synchronous").get
        floor.commit()
        return found

    later = time.monotonic() + 3600.0
    assert synchronous(soft=False, synced=later) == full
    assert floor.synced < later
    assert synchronous(soft=True, synced=later) == normal
    assert floor.synced == later
    assert synchronous(soft=True, synced=time.monotonic() - 2 * SYNC) == full
    floor.close()


@pytest.mark.parametrize("words", [("--quick", "--save"), ("--save", "--quick", "imports")])
def test_quick_figures_are_not_saved(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "bench", *words), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--quick" in done.stderr


def test_runs_grow_until_they_take_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    given = list[int]()

    def work(folder: Path, messages: int) -> float:
        assert list(folder.iterdir()) == []
        given.append(messages)
        return float(messages)

    assert beside.scaled(work, 1e9, 5000) == 5000.0
    assert given == [1000, 5000]
    assert beside.scaled(work, 0.0, 5000) == 1000.0
