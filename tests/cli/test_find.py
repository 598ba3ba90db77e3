"""``tidings find``: a needle in what is retained."""

from __future__ import annotations

import json
from typing import Any

from .conftest import Shell


def test_by_what_is_known(shell: Shell) -> None:
    published = (
        ["a.x", '{"name": "Zoé Quux"}', "--key", "k1", "--header", "trace=t-1"],
        ["a.y", '{"name": "Ann"}', "--key", "k2", "--header", "trace=t-2"],
        ["b", "k1 in a text"],
    )
    ids = [shell("publish", *words, "--json").json["id"] for words in published]
    names = dict(zip(ids, ("first", "second", "third"), strict=True))
    cases: list[tuple[list[str], list[str]]] = [
        (["--id", ids[1]], ["second"]),
        (["--key", "k1"], ["first"]),
        (["--header", "trace=t-2"], ["second"]),
        (["--header", "trace"], ["first", "second"]),
        (["--text", "Quux"], ["first"]),
        (["--text", "k1"], ["third"]),
        (["--where", "name=Ann"], ["second"]),
        (["k1"], ["first", "third"]),
        (["t-1"], ["first"]),
        ([ids[1]], ["second"]),
        (["Zoé"], ["first"]),
        (["k1", "--in", "a.*"], ["first"]),
        (["k1", "--text", "text"], ["third"]),
        (["nix"], []),
    ]
    results = shell.all([["find", *words, "--json"] for words, _ in cases])
    for (words, expected), (_, out, err, _) in zip(cases, results, strict=True):
        assert [names[event["id"]] for event in json.loads(out)] == expected, words
        total = 2 if "--in" in words else 3
        assert err == f"scanned {total} of {total}, found {len(expected)}\n", words
    assert f"  a.x  k1  {ids[0]}  " in shell("find", "t-1").out


def test_dead_letters_too(shell: Shell, letters: list[dict[str, Any]]) -> None:
    found = shell("find", "A1", "--json").json
    assert [event.get("tdgaddress") for event in found] == [None, "_dead.shop.bill"]
    assert [event["id"] for event in shell("find", "--header", "tdgerror=ValueError", "--json").json] == [
        letter["id"] for letter in letters
    ]
    shown = shell.on_terminal("find", "A1", "--in", "_dead.>").out
    assert "tdgdetail" in shown
    assert "Traceback" not in shown


def test_limit_shows_the_newest(shell: Shell) -> None:
    shell("publish", "a", "--lines", input="\n".join(map(str, range(1_500))))
    found = shell("find", "--text", "1", "--limit", "2", "--json")
    assert [event["data"] for event in found.json] == [1_498, 1_499]
    count = sum("1" in str(n) for n in range(1_500))
    assert found.err == f"scanned 1,500 of 1,500, found {count}; these are the newest 2\n"


def test_misuse(shell: Shell) -> None:
    shell("publish", "a", "1")
    cases = [
        ("find", "find what?"),
        ("find a b", "too many arguments"),
        ("find x --limit 0", "--limit cannot be 0"),
        ("find x --in a..b", "TDG-E001"),
        ("find --txt x", "did you mean --text?"),
    ]
    for (line, said), (code, out, err, _) in zip(cases, shell.all([c[0].split() for c in cases]), strict=True):
        assert (code, out, said in err) == (2, "", True), (line, err)
