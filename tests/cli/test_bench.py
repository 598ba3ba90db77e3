"""``tidings bench``: what it measures, what it leaves, what it refuses. How fast anything is, is nobody's business."""

from __future__ import annotations

import json
import signal
import time

import pytest

from .conftest import PATIENCE, Shell

MEASURED = ["100 concurrent publish", "publish_many", "consume a backlog", "end to end", "delay at "]
SHORT = ("--seconds", "0.1")


@pytest.mark.parametrize("url", ["memory://", "memory://shared", "sqlite:///new.db"])
def test_figures(nowhere: Shell, url: str) -> None:
    told = nowhere("bench", url, *SHORT, "--json")
    results = told.json["results"]
    assert [
        name for name, result in zip(MEASURED, results, strict=True) if result["measured"].startswith(name)
    ] == MEASURED
    assert all(result["messages"] > 0 and result["rate"] > 0 for result in results)
    published, backlog, delays = results[1], results[2], results[-1]["delays_ms"]
    assert published["messages"] == backlog["messages"]
    assert list(delays) == ["p50", "p99", "p99.9", "max"]
    assert sorted(delays.values()) == list(delays.values())
    assert told.json["durable"] == ("none" if url.startswith("memory") else "power")


def test_what_stays(shell: Shell, known: None) -> None:
    before = shell("groups", "--json").json
    told = shell("bench", *SHORT, "--json")
    left = told.json["left"]
    assert left["groups"] == []
    assert left["messages"] == sum(
        result["messages"] for result in told.json["results"] if "consume" not in result["measured"]
    )
    assert f"{left['messages']:,} messages on {left['topics']} stay on sqlite:///{shell.folder}/shop.db" in told.err
    assert shell("groups", "--json").json == before
    assert json.loads(shell("tail", left["topics"], "--since", "first", "--limit", "1", "--json").out)["data_base64"]


def test_a_file_that_was_made_for_it_is_told(nowhere: Shell) -> None:
    told = nowhere("bench", "sqlite:///new.db", *SHORT)
    assert f"sqlite:///{nowhere.folder}/new.db was made for this; delete it" in told.err


def test_a_memory_bus_leaves_nothing(nowhere: Shell) -> None:
    told = nowhere("bench", "memory://", *SHORT, "--json")
    assert told.json["left"]["messages"] == 0
    assert told.err == "measuring memory://: bodies of 200 bytes, up to 0.1 s each\n"


def test_size(nowhere: Shell) -> None:
    told = nowhere("bench", "memory://", *SHORT, "--size", "8", "--json").json
    assert told["size"] == 8
    large = nowhere("bench", "sqlite:///new.db", *SHORT, "--size", "1000000", "--json").json
    assert large["results"][1]["megabytes"] == pytest.approx(large["results"][1]["rate"], rel=0.01, abs=0.1)


def test_lines_in_a_pipe(nowhere: Shell) -> None:
    heading, *lines = nowhere("bench", "memory://", *SHORT).out.splitlines()
    assert heading.split() == ["MEASURED", "MSG/S", "MB/S", "P50_MS", "P99_MS", "P99.9_MS", "MAX_MS"]
    assert [name for name, line in zip(MEASURED, lines, strict=True) if line.startswith(name)] == MEASURED


def test_on_a_terminal(nowhere: Shell) -> None:
    shown = nowhere.on_terminal("bench", "memory://", *SHORT)
    assert shown.code == 0
    assert "publishing and consuming" in shown.out  # what it is at
    assert all(name in shown.out for name in MEASURED)
    assert "\x1b[36mdelay at" in shown.out


def test_a_group_that_would_hear_it_is_protected(shell: Shell) -> None:
    shell.write(
        "all.py",
        "from tidings import App\napp = App('all')\n@app.on('>')\nasync def see(x: dict[str, int]) -> None: ...\n",
    )
    running = shell.start("run", "all")
    running.until("listens on")
    refused = shell("bench", *SHORT, code=2)
    assert running.end() == 0, running.lines
    assert "TDG-E002: group all.see would get every message of the bench" in refused.err
    assert "it listens to >" in refused.err
    (group,) = shell("groups", "--json").json
    assert (group["name"], group["lag"]) == ("all.see", 0)


def test_interrupted_it_cleans_up(nowhere: Shell) -> None:
    url, deadline = ("--url", "sqlite:///new.db", "--json"), time.monotonic() + PATIENCE
    running = nowhere.start("bench", "sqlite:///new.db", "--seconds", "60")
    running.until("measuring")
    while not (nowhere.folder / "new.db").exists() or not nowhere("groups", *url).json:
        assert time.monotonic() < deadline, running.lines
    assert running.end(signal.SIGINT) == 130, running.lines
    assert nowhere("groups", *url).json == []
    assert any("was made for this" in line for line in running.lines)


MISUSE = [
    ("bench", "which bus?"),
    ("bench nix", "'nix' is no bus URL"),
    ("bench sqlit:///x.db", "did you mean 'sqlite'?"),
    ("bench memory:// --url memory://", "exclude each other"),
    ("bench memory:// --seconds 0", "--seconds cannot be 0"),
    ("bench memory:// --seconds nan", "--seconds cannot be nan"),
    ("bench memory:// --seconds 601", "--seconds cannot be 601"),
    ("bench memory:// --seconds soon", "into float"),
    ("bench memory:// --size 7", "--size cannot be 7"),
    ("bench memory:// --size x", "into int"),
    ("bench memory:// --sice 8", "did you mean --size?"),
    ("bench memory:// x", "too many arguments"),
]


def test_misuse(nowhere: Shell) -> None:
    wrong = []
    for (line, said), result in zip(MISUSE, nowhere.all([line.split() for line, _ in MISUSE]), strict=True):
        code, out, err, files = result
        if (code, out, files) != (2, "", []) or said not in err or "where:" in err:
            wrong.append((line, said, result))
    assert wrong == []


def test_bad_buses(nowhere: Shell) -> None:
    nowhere.write("junk.db", "this is no database; " * 100)
    assert nowhere("bench", "sqlite:///junk.db", code=3).err.count("TDG-E023") == 1
    assert "nix" in nowhere("bench", "sqlite:///nix/a.db", code=3).err


def test_bodies_beyond_what_the_bus_takes(nowhere: Shell) -> None:
    refused = nowhere("bench", "memory://", *SHORT, "--size", "17000000", code=2).err
    assert "a body of 17,000,000 bytes" in refused


def test_errors_as_json(nowhere: Shell) -> None:
    assert json.loads(nowhere("bench", "memory://", "--size", "1", "--json", code=2).err)["error"]["code"] == "TDG-E002"
