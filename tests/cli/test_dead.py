"""``tidings dead``: from a failure to its mending. ``letters``: A1 and A2 died in shop.bill, which is not running."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .conftest import Shell

Letters = list[dict[str, Any]]


def edit(shell: Shell, old: str, new: str) -> None:
    source = (shell.folder / "shop.py").read_text()
    assert old in source
    shell.write("shop.py", source.replace(old, new))


def test_from_failure_to_mending(shell: Shell, letters: Letters) -> None:
    first, second = letters
    assert (first["group"], first["error"], first["reason"], first["key"]) == (
        "shop.bill",
        "ValueError",
        "failed",
        "A1",
    )
    (pile,) = shell("dead", "ls", "--json").json
    assert (pile["dead"], pile["replayed"], pile["example"], pile["detail"]) == (2, 0, second["id"], "negative total")
    assert [group["dead"] for group in shell("groups", "shop.bill", "--json").json] == [2]

    dry = shell("dead", "replay", "--all", "--dry-run")
    assert dry.out == "would replay 2 dead letters to shop.bill\n"
    assert "has no members" in dry.err
    assert shell("dead", "replay", first["id"]).out == "replayed 1 dead letter to shop.bill\n"
    assert [letter["mark"] for letter in shell("dead", "ls", "--all", "--json").json] == ["replayed", ""]
    assert [group["dead"] for group in shell("groups", "shop.bill", "--json").json] == [1]
    assert "replayed already" in shell("dead", "replay", first["id"], code=2).err

    edit(shell, "order.total < 0", "order.total < -9")
    mended = shell.start("run", "shop")
    mended.until("billed A1")
    told = shell("dead", "replay", "--error", "ValueError", "--group", "shop.bill", "--json")
    assert (told.json["replayed"], told.err) == (1, "")
    mended.until("billed A2")
    assert mended.end() == 0
    assert shell("dead", "replay", "--all").out == "replayed nothing\n"
    assert [pile["dead"] for pile in shell("dead", "ls", "--json").json] == [0]


def test_one_that_dies_again_is_a_new_letter(shell: Shell, letters: Letters) -> None:
    letter = letters[0]
    shop = shell.start("run", "shop")
    shell("dead", "replay", str(letter["position"]))
    shop.until("dead letter of shop.bill")
    assert shop.end() == 0
    found = shell("dead", "ls", "shop.bill", "--all", "--json").json
    assert [(f["id"], f["mark"]) for f in found if f["key"] == "A1"] == [(letter["id"], "replayed"), (letter["id"], "")]
    assert shell("dead", "show", letter["id"], "--json").json["position"] == found[-1]["position"]
    shell("dead", "replay", letter["id"])


def test_lists(shell: Shell, letters: Letters) -> None:
    heading, line = shell("dead", "ls").out.splitlines()
    assert heading.split() == ["GROUP", "ERROR", "DEAD", "REPLAYED", "NEWEST", "EXAMPLE", "DETAIL"]
    assert re.fullmatch(rf"shop.bill +ValueError +2 +0 +[\dms ]+ ago +{letters[1]['id']} +negative total", line)
    _, line, _ = shell("dead", "ls", "shop.bill", "--all").out.splitlines()
    wanted = [str(letters[0]["position"]), letters[0]["id"], "shop.bill", "orders.placed", "ValueError"]
    assert line.split()[:5] == wanted
    assert shell("dead", "ls", "count", "--json").json == []
    assert "no dead letters" in shell("dead", "ls", "count").err
    assert "did you mean 'shop.bill'?" in shell("dead", "ls", "shop.bil", code=2).err
    assert "───" in shell.on_terminal("dead", "ls").out


def test_show(shell: Shell, letters: Letters) -> None:
    letter = letters[0]
    shown = shell("dead", "show", letter["id"]).out
    for text in (
        "shop.bill",
        "orders.placed",
        "ValueError: negative total",
        "1 failed, 0 crashed",
        "from=test",
        "Traceback (most recent call last):",
        'raise ValueError("negative total")',
        '{\n  "id": "A1",\n  "total": -1\n}',
    ):
        assert text in shown
    assert shell("dead", "show", str(letter["position"])).out.splitlines()[0] == shown.splitlines()[0]
    told = shell("dead", "show", letter["id"], "--group", "shop.bill", "--json").json
    assert told["message"]["data"] == {"id": "A1", "total": -1}
    assert told["message"]["headers"] == {"from": "test"}
    assert "negative total" in told["told"]["tdgtraceback"]


@pytest.mark.parametrize("verb", ["show", "replay"])
def test_which_one(shell: Shell, letters: Letters, verb: str) -> None:
    assert "there is no dead letter 'nix'" in shell("dead", verb, "nix", code=2).err
    wrong = letters[0]["id"][:-3] + "zzz"
    assert "did you mean" in shell("dead", verb, wrong, code=2).err


def test_what_replay_refuses(shell: Shell, letters: Letters) -> None:
    assert "exclude each other" in shell("dead", "replay", letters[0]["id"], "--all", code=2).err
    assert "did you mean 'ValueError'?" in shell("dead", "replay", "--error", "ValuError", code=2).err
    assert "there is no group 'shop.nix'" in shell("dead", "replay", "--all", "--to", "shop.nix", code=2).err
    shell("groups", "drop", "shop.bill", "-y")
    gone = shell("dead", "replay", "--all", code=2)
    assert "nobody would receive" in gone.err
    assert [found["mark"] for found in shell("dead", "ls", "--all", "--json").json] == ["", ""]


def test_replay_to_a_renamed_group(shell: Shell, letters: Letters) -> None:
    edit(shell, "order.total < 0", "order.total < -9")
    edit(shell, "def bill(", "def invoice(")
    shell("groups", "rename", "shop.bill", "shop.invoice")
    assert shell("dead", "replay", "--all", "--to", "shop.invoice").out == "replayed 2 dead letters to shop.invoice\n"
    shell.start("run", "shop").until("billed A2")


def test_undecodable(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", "no order at all")
    shell.start("run", "shop").until("dead letter of shop.bill")
    (pile,) = shell("dead", "ls", "--json").json
    assert (pile["error"], pile["reason"]) == ("Undecodable", "undecodable")
    assert "no order at all" in shell("dead", "show", pile["example"]).out
    assert shell("dead", "replay", "--error", "undecodable").out == "replayed 1 dead letter to shop.bill\n"
