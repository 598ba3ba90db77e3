"""``tidings explain``: one page, or the list; by code, number or name; on a terminal and in a pipe."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from .conftest import Shell


def test_every_way_to_name_an_error(nowhere: Shell) -> None:
    names = ["TDG-E012", "tdg-e012", "TDGE12", "E012", "e12", "12", "012", "NotFound", "notfound"]
    told = nowhere.all([["explain", name] for name in names])
    assert {(code, out.startswith("## TDG-E012\n\n**NotFound**"), err) for code, out, err, _ in told} == {(0, True, "")}


def test_a_page_says_what_causes_it_and_how_to_mend_it(nowhere: Shell) -> None:
    told = nowhere("explain", "25").out
    assert "whose fault: the bus's; exit code 3" in told
    assert "```text\nTDG-E025: the memory bus is full" in told
    assert "**Causes:** groups are slower" in told
    assert "**Mend it:** `tidings groups` shows" in told
    assert "\x1b" not in told


def test_what_a_served_bus_refuses_has_pages_too(nowhere: Shell) -> None:
    told = nowhere("explain", "E062").out
    assert told.startswith(
        "## TDG-E062\n\n**Forbidden** – whose fault: the client's; told by the answer of the server."
    )
    assert "```text\nTDG-E062: 'till' may not publish" in told


def test_on_a_terminal(nowhere: Shell) -> None:
    told = nowhere.on_terminal("explain", "BusFull").out
    assert told.startswith("\x1b[31mTDG-E025\x1b[0m \x1b[1mBusFull\x1b[0m\n")
    assert "Mend it:" in told
    assert "**" not in told
    assert "```" not in told


def test_the_list(nowhere: Shell) -> None:
    head, *rows = nowhere("explain").out.splitlines()
    assert head.split() == ["CODE", "ERROR", "MEANING"]
    assert rows[0].split()[:2] == ["TDG-E000", "TidingsError"]
    assert [row for row in rows if row.startswith("TDG-E054  HandlerCrashed")]


def test_json(nowhere: Shell) -> None:
    page = nowhere("explain", "E009", "--json").json
    assert (page["code"], page["error"], page["fault"]) == ("TDG-E009", "TooLarge", "the caller's; exit code 2")
    assert "Claim Check" in page["text"]
    assert {"code", "error", "meaning", "fault"} == set(nowhere("explain", "--json").json[0])


@pytest.mark.parametrize(
    ("name", "mend"),
    [("NotFond", "did you mean 'NotFound'?"), ("busfull.", "did you mean 'BusFull'?"), ("x", "`tidings explain`")],
)
def test_no_such_error(nowhere: Shell, name: str, mend: str) -> None:
    told = json.loads(nowhere("explain", name, "--json", code=2).err)["error"]
    assert told["code"] == "TDG-E012"
    assert told["mend"].startswith(mend)


def test_a_number_that_no_error_has(nowhere: Shell) -> None:
    assert "no error is called 'TDG-E099'" in nowhere("explain", "99", code=2).err


def test_errors_point_to_their_page_on_a_terminal(nowhere: Shell) -> None:
    told = nowhere.on_terminal("groups")
    assert told.code == 2
    assert told.out.splitlines()[-1] == "\x1b[2m  more:  tidings explain TDG-E002\x1b[0m"
    assert "explain" not in nowhere("groups", code=2).err


@pytest.mark.slow
def test_the_wheel_has_the_pages(wheel: Path) -> None:
    assert "tidings/cli/errors.md" in ZipFile(wheel).namelist()
