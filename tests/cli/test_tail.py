"""``tidings tail``: retained, then live; clean ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest

from .conftest import SCRIPT, Shell


def test_live_then_interrupted(shell: Shell) -> None:
    shell("publish", "warm.up", "0")
    tail = shell.start("tail", "orders.>", "--json")
    tail.until("following orders.>")
    shell("publish", "stock.low", "1")
    shell("publish", "orders.placed", '{"n": 1}', "--key", "k")
    event = json.loads(tail.until("orders.placed"))
    assert (event["specversion"], event["tdgtopic"], event["partitionkey"], event["data"]) == (
        "1.0",
        "orders.placed",
        "k",
        {"n": 1},
    )
    assert {"id", "source", "type", "time", "datacontenttype"} <= event.keys()
    assert tail.end(signal.SIGINT) == 0
    assert not any("stock" in line for line in tail.lines)


def test_terminated(shell: Shell) -> None:
    shell("publish", "warm.up", "0")
    tail = shell.start("tail")
    tail.until("following >")
    assert tail.end(signal.SIGTERM) == 0


def test_retained_then_live_each_once(shell: Shell) -> None:
    shell("publish", "a", "--lines", input="\n".join(map(str, range(2_300))))
    tail = shell.start("tail", "a", "--since", "first", "--json")
    tail.until('"data":5}')
    shell("publish", "a", "--lines", input="\n".join(map(str, range(2_300, 2_800))))
    tail.until('"data":2799}')
    numbers = [json.loads(line)["data"] for line in tail.lines if line.startswith("{")]
    assert numbers == list(range(2_800))
    assert tail.end(signal.SIGINT) == 0


def test_since(shell: Shell) -> None:
    shell("publish", "a", "1")
    assert len(shell("tail", "a", "--since", "-1h", "--limit", "1").out.splitlines()) == 1
    assert len(shell("tail", "a", "--since=2020-02-01T12:00", "--limit", "1").out.splitlines()) == 1
    tail = shell.start("tail", "a", "--since", "2100-01-01")
    tail.until("following")
    shell("publish", "a", "2")
    assert tail.until("  a  ").endswith("  2\n")


def test_a_line(shell: Shell) -> None:
    shell("publish", "a.b", "\x1b[31mred\nnext", "--key", "k\x07")
    line = shell("tail", "a.*", "--since", "first", "--limit", "1").out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00  a\.b  k\\x07  \\x1b\[31mred\\nnext\n", line)


def test_nothing_on_the_bus_reaches_a_terminals_controls(shell: Shell) -> None:
    shell("publish", "a", "\x1b]0;title\x07 \x9b31m \u202e")
    shown = shell.on_terminal("tail", "a", "--since", "first", "--limit", "1").out
    assert "\\x1b]0;title\\x07 \\x9b31m \\u202e" in shown


@pytest.mark.parametrize("published", [0, 5_000], ids=["while it waits", "while it writes"])
def test_reader_leaves(shell: Shell, published: int) -> None:
    shell("publish", "a", "--lines", input="\n".join(map(str, range(published + 1))))
    tail = [SCRIPT, "tail", "a", "--since", "first"]
    with subprocess.Popen(
        tail, cwd=shell.folder, env=shell.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert "rror" not in process.stderr.read()


def test_filters(shell: Shell) -> None:
    bodies = ['{"total": 5, "who": {"name": "Ann"}}', '{"total": 50, "who": {"name": "Bob"}}', "plain text"]
    for number, body in enumerate(bodies):
        shell("publish", "a", body, "--key", f"k{number}", "--header", f"n={number}")

    def shown(*words: str) -> list[str]:
        found = shell("tail", "a", "--since", "first", "--limit", "1", "--json", *words).out.splitlines()
        return [json.loads(line)["partitionkey"] for line in found]

    assert shown("--key", "k1") == ["k1"]
    assert shown("--header", "n=2") == ["k2"]
    assert shown("--where", "who.name=Bob") == ["k1"]
    assert shown("--where", "total>=1", "--where", "who.name!=Ann") == ["k1"]
    assert shown("--grep", "lain") == ["k2"]


def test_filters_of_what_comes(shell: Shell) -> None:
    shell("publish", "a", "0")
    tail = shell.start("tail", "a", "--where", "n=3", "--limit", "2", "--json")
    tail.until("following a")
    shell("publish", "a", "--lines", input='{"n": 3}\n{"n": 4}\nx\n{"n": 3, "m": 1}\n')
    assert [json.loads(tail.until("data"))["data"] for _ in range(2)] == [{"n": 3}, {"n": 3, "m": 1}]
    assert tail.process.wait(30) == 0


def test_long_bodies_are_indented_on_a_terminal(shell: Shell) -> None:
    shell("publish", "a", '{"n": 1}')
    shell("publish", "a", '{"n": 2, "text": "' + "x" * 150 + '"}')
    first, *second = shell.on_terminal("tail", "a", "--since", "first", "--limit", "2").out.splitlines()
    assert first.endswith('{"n":1}')
    assert second[1:3] == ["    {", '      "n": 2,']
