"""What is shown, on a terminal and without one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from tidings import Message
from tidings.demo.app import Anomaly
from tidings.demo.board import Row, Snapshot, reached
from tidings.demo.meter import percentile
from tidings.demo.plain import Plain, summary
from tidings.demo.screen import Screen, amount, bars, chosen, clock, named, span, welcome
from tidings.demo.sensors import Reading


def reading(device: str, quantity: str = "load", unit: str = "%", value: float = 50.0, time: float = 100.0) -> Reading:
    return Reading("h", device, quantity, unit, value, time)


NAMES = ["sample", "translate", "window", "minutes", "score", "route", "watch", "alarm", "mourn", "summarize"]
LETTER: Message[bytes] = Message(
    "legacy.h.uptime",
    headers=(
        ("tdggroup", "demo.translate"),
        ("tdgreason", "rejected"),
        ("tdgdetail", "no load average in 'up 3', an uncommonly long line that no terminal of this width can show"),
    ),
)
SNAPSHOT = Snapshot(
    bus="sqlite:////home/someone/a/rather/long/path/to/tidings-demo.db",
    url="sqlite:///tidings-demo.db",
    elapsed=3723.0,
    pid=4711,
    waiting=12,
    recovered=3,
    published=123_456,
    rate=27.4,
    rows=[
        Row(f"demo.{name}", name, "loop", "sensors", ["windows"], 13.2, 1234, 5, 2 * (name == "translate"), 0.0012, 1.2)
        for name in NAMES
    ],
    readings=[
        *((reading(f"core-{index}"), [10.0, 50.0]) for index in range(16)),
        (reading("memory", "used"), [50.0]),
        (reading("net-eth0", "received", "B/s", 1_234_567.0), [0.0, 1_234_567.0]),
        (reading("program-a%2Eout", value=3.0), [1.0, 3.0]),
    ],
    alerts=[("critical", Anomaly(reading("core-0", value=97.0), 21.4))],
    severities={"critical": 1},
    letters=[LETTER],
    buried=1,
    p50=0.0012,
    p99=0.0456,
)


def painted(snapshot: Snapshot, width: int, height: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    Screen(console).paint(snapshot)
    text = out.getvalue().rpartition("\x1b[H")[2]
    assert text.endswith("\x1b[K\n\x1b[J")
    return [line.rstrip() for line in text.removesuffix("\x1b[J").split("\x1b[K\n")[:-1]]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_the_picture_fits_and_says_it_all(width: int, height: int) -> None:
    lines = painted(SNAPSHOT, width, height)
    assert len(lines) == height - 1
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    said = [
        "recovered 3 messages",
        "up 1:02:03",
        "p99 45.6 ms",
        "translate",
        "1 critical",
        "kill -9 4711",
        "core-0 load 97 %",
    ]
    said += [
        "dead letters: 2",
        "no load average",
        "tidings dead ls ",
        "tidings dead replay --all",
    ]
    said += ["core-0 load", "memory used", "1 MB/s", "a.out load"]
    assert [part for part in said if part not in text] == []


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 12)])
def test_a_terminal_that_is_too_small_shows_what_fits(width: int, height: int) -> None:
    lines = painted(SNAPSHOT, width, height)
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width


def test_an_empty_picture() -> None:
    empty = replace(
        SNAPSHOT, rows=[], readings=[], alerts=[], severities={}, letters=[], p99=None, recovered=0, waiting=0
    )
    text = "\n".join(painted(empty, 80, 24))
    assert "nothing was waiting" in text
    assert text.count("none yet") == 2


def test_a_warning_takes_the_place_of_the_hints() -> None:
    text = "\n".join(painted(replace(SNAPSHOT, said="the disk is full"), 80, 24))
    assert "the disk is full" in text
    assert "try:" not in text


def test_the_hints_name_a_url_that_works_from_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reached(f"sqlite:///{tmp_path}/sub/x.db") == "sqlite:///sub/x.db"
    assert reached("sqlite:////elsewhere/x.db") == "sqlite:////elsewhere/x.db"
    assert reached("memory://") == ""
    assert "export TIDINGS_URL" not in "\n".join(painted(replace(SNAPSHOT, url=""), 80, 24))


def test_something_of_everything_before_all_of_anything() -> None:
    shown = [item.device for item, _ in chosen(SNAPSHOT.readings, 6)]
    assert shown == ["core-0", "core-1", "core-2", "program-a%2Eout", "memory", "net-eth0"]
    assert chosen([(reading("old", time=1.0), ()), (reading("new"), ())], 5) == [(reading("new"), ())]


def test_plain_lines_say_each_thing_once() -> None:
    plain = Plain()
    first = list(plain.lines(SNAPSHOT))
    assert first[:2] == [
        f"demo pid=4711 bus={SNAPSHOT.bus}",
        "found recovered=3 waiting=12: recovered 3 messages of a process that died, 12 were waiting",
    ]
    assert "alert severity=critical series=core-0.load score=21.4 value='97 %'" in first
    assert any(line.startswith("dead letter group=demo.translate reason=rejected detail=") for line in first)
    assert first[-1].startswith("t=3723 rate=27/s lag=50 published=123456 handled=12340 dead=2 alerts=1 p50_ms=1.2")
    assert list(plain.lines(SNAPSHOT)) == []
    assert list(plain.lines(replace(SNAPSHOT, recovered=5))) == ["found recovered=5 by now"]


def test_the_summary_is_made_to_be_parsed() -> None:
    lines = list(summary(SNAPSHOT, {"sensors": 7}, 0))
    assert lines[0] == "topic name=sensors published=7"
    assert "group name=demo.translate handled=1234 failed=0 dead=2" in lines
    assert lines[-1].startswith("summary seconds=3723.0 recovered=3 left=0 published=123456 handled=12340 dead=2")


def test_the_last_words_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(Console(file=io.StringIO())).end(SNAPSHOT, {"sensors": 7}, 4)
    assert "7 published" in (said := capsys.readouterr().out)
    assert "4 messages wait for the next start" in said


def test_numbers_for_people() -> None:
    assert [span(s) for s in (None, 0.0004, 0.0456, 0.25, 1.26, 600.0)] == [
        "–",
        "0.4 ms",
        "45.6 ms",
        "250 ms",
        "1.3 s",
        "10 min",
    ]
    rates = [amount(reading("d", unit="B/s", value=value)) for value in (7.0, 1500.0, 2e6, 3.25e9)]
    assert rates == ["7 B/s", "2 kB/s", "2 MB/s", "3.2 GB/s"]
    assert [amount(reading("d", unit=unit, value=41.5)) for unit in ("%", "C", "")] == ["42 %", "42 °C", "41.50"]
    assert bars([0.0, 50.0, 100.0], "%") == "▁▅█"
    assert bars([0.0, 0.0], "B/s") == "▁▁"
    assert (clock(59.9), named(reading("program-a%2Eb"))) == ("0:00:59", "a.b load")
    assert welcome(0, 0) == "nothing was waiting"


def test_percentiles() -> None:
    assert percentile([], 50) is None
    assert (percentile([3.0, 1.0, 2.0], 50), percentile([3.0, 1.0, 2.0], 99)) == (2.0, 3.0)
    assert percentile([float(n) for n in range(1, 101)], 99) == 99.0
