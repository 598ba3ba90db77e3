"""``tidings dead``: from a failure to its mending. ``letters``: A1 and A2 died in shop.bill, which is not running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nats
import pytest
from tests.servers import fresh

from .conftest import SCRIPT, SHOP, Shell

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
    assert " ".join(heading.split()) == "FINGERPRINT GROUP ERROR WHERE DEAD REPLAYED FIRST LAST EXAMPLE"
    error, ages = "shop.bill +ValueError: negative total +shop.py:17", " +".join([r"[\dms ]+ ago"] * 2)
    assert re.fullmatch(rf"{letters[0]['fingerprint']} +{error} +2 +0 +{ages} +{letters[1]['id']}", line)
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


@pytest.mark.parametrize("verb", ["show", "replay", "edit", "purge"])
def test_which_one(shell: Shell, letters: Letters, verb: str) -> None:
    assert "there is no dead letter 'nix'" in shell("dead", verb, "nix", code=2).err
    wrong = letters[0]["id"][:-3] + "zzz"
    assert "did you mean" in shell("dead", verb, wrong, code=2).err


def test_what_replay_refuses(shell: Shell, letters: Letters) -> None:
    assert "which dead letters?" in shell("dead", "replay", code=2).err
    assert "exclude each other" in shell("dead", "replay", letters[0]["id"], "--all", code=2).err
    assert "has fingerprint 'ffff'" in shell("dead", "replay", "--fingerprint", "ffff", code=2).err
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


def test_fingerprints(shell: Shell, letters: Letters) -> None:
    """One for one line of the user's code, whatever it said and wherever the line moved; another for another line."""
    edit(
        shell,
        "    if order.total < 0:",
        "    if order.total > 9:\n        raise ValueError(order.id)\n\n    if order.total < 0:",
    )
    running = shell.start("run", "shop")
    for id, total in (("B1", -2), ("B2", 10), ("B3", 11)):
        shell("publish", "orders.placed", json.dumps({"id": id, "total": total}))
        running.until("dead letter of shop.bill")
    assert running.end() == 0
    old, new = shell("dead", "ls", "--json").json
    assert (old["dead"], old["fingerprint"], old["place"]) == (3, letters[0]["fingerprint"], "shop.py:20")
    assert (new["dead"], new["place"], new["first"] < new["last"]) == (2, "shop.py:17", True)
    assert new["fingerprint"] != old["fingerprint"]
    of_new = ("--fingerprint", new["fingerprint"])
    assert {letter["detail"] for letter in shell("dead", "ls", *of_new, "--all", "--json").json} == {"B2", "B3"}
    died = shell("dead", "ls", "--all", "--json").json[2]["died"]
    assert shell("dead", "replay", "--since", died, "--dry-run").out == "would replay 3 dead letters to shop.bill\n"
    assert shell("dead", "replay", *of_new).out == "replayed 2 dead letters to shop.bill\n"
    assert shell("dead", "replay", "--group", "shop.bill").out == "replayed 3 dead letters to shop.bill\n"


# -- edit


def test_edit_by_option(shell: Shell, letters: Letters) -> None:
    words = ("dead", "edit", letters[0]["id"])
    assert "the body was JSON, and is none now" in shell(*words, "--body", "{'id': 7}", code=2).err
    assert "nothing was changed" in shell(*words, "--body", '{"id": "A1", "total": -1}').err
    assert "would replay 1 dead letter" in shell(*words, "--body", '{"id": "A1", "total": 1}', "--dry-run").out
    assert [letter["mark"] for letter in shell("dead", "ls", "--all", "--json").json] == ["", ""]
    assert shell(*words, "--file", "-", input='{"id": "A1", "total": 7}\n').out.startswith("replayed 1 dead letter")
    assert [letter["mark"] for letter in shell("dead", "ls", "--all", "--json").json] == ["edited", ""]
    assert "replayed already" in shell(*words, "--body", "1", code=2).err
    tail = shell.start("tail", "_group.shop.bill", "--since", "first", "--json")
    event = json.loads(tail.until("A1"))
    assert (event["id"], event["tdgtopic"], event["partitionkey"]) == (letters[0]["id"], "orders.placed", "A1")
    assert (event["data"], event["headers"]) == ({"id": "A1", "total": 7}, {"from": "test"})
    shell.start("run", "shop").until("billed A1")


def test_edit_in_an_editor(shell: Shell, letters: Letters) -> None:
    words = ("dead", "edit", letters[0]["id"])
    shell.env.pop("EDITOR", None)
    shell.env.pop("VISUAL", None)
    assert "no $EDITOR" in shell(*words, code=2).err
    shell.env["EDITOR"] = "nix-is-no-editor"
    assert "cannot be started" in shell(*words, code=2).err
    shell.env["EDITOR"] = "false"
    assert "exit code 1" in shell(*words, code=2).err
    shell.env["EDITOR"] = "true"
    assert "nothing was changed" in shell(*words).err
    shell.env["EDITOR"] = "sed -i s/}//"
    refused = shell(*words, code=2).err
    assert kept(refused).read_text() == '{\n  "id": "A1",\n  "total": -1\n\n'
    kept(refused).unlink()
    shell.env["EDITOR"] = "sed -i s/-1/1/"
    assert shell(*words).out == "replayed 1 dead letter to shop.bill\n"
    shell.start("run", "shop").until("billed A1")


def kept(said: str) -> Path:
    """The file that holds what was typed."""
    return Path(re.search(r"--file ([^\s`]+)", said)[1])  # type: ignore[index]


def test_what_was_typed_is_never_lost(shell: Shell, letters: Letters) -> None:
    words = ("dead", "edit", letters[0]["id"])
    shell.write("editor", 'sed -i s/-1/1/ "$1"\ntidings groups drop shop.bill -y\n')
    shell.env |= {"EDITOR": "sh editor", "PATH": f"{Path(SCRIPT).parent}:{shell.env['PATH']}"}
    refused = shell(*words, code=2).err
    assert "nobody would receive" in refused
    assert kept(refused).read_text() == '{\n  "id": "A1",\n  "total": 1\n}\n'
    kept(refused).unlink()


@pytest.mark.parametrize("end", ["exit 3", "kill -INT $PPID; exit 0"])
def test_an_editor_that_fails_or_is_interrupted(shell: Shell, letters: Letters, end: str) -> None:
    shell.write("editor", f'sed -i s/-1/1/ "$1"\n{end}\n')
    shell.env["EDITOR"] = "sh editor"
    said = shell("dead", "edit", letters[0]["id"], code=2 if end == "exit 3" else 130).err
    assert '"total": 1' in kept(said).read_text()
    kept(said).unlink()
    assert [letter["mark"] for letter in shell("dead", "ls", "--all", "--json").json] == ["", ""]


def test_what_cannot_be_replayed_is_not_edited(shell: Shell, letters: Letters) -> None:
    shell.env["EDITOR"] = "touch opened"
    shell("dead", "replay", letters[0]["id"])
    assert "replayed already" in shell("dead", "edit", letters[0]["id"], code=2).err
    assert "there is no group" in shell("dead", "edit", letters[1]["id"], "--to", "shop.nix", code=2).err
    assert not (shell.folder / "opened").exists()


def test_edit_and_dry_run(shell: Shell, letters: Letters) -> None:
    words = ("dead", "edit", letters[0]["id"])
    shell.env["EDITOR"] = "sed -i s/-1/1/"
    told = shell(*words, "--dry-run")
    assert told.out == "would replay 1 dead letter to shop.bill\n"
    assert shell(*words, "--file", str(kept(told.err))).out == "replayed 1 dead letter to shop.bill\n"
    kept(told.err).unlink()


def test_edit_text(shell: Shell, known: None) -> None:
    """Editors end a file with a newline, whether it had one or not."""
    shell("publish", "orders.placed", "no order at all")
    shop = shell.start("run", "shop")
    shop.until("dead letter of shop.bill")
    assert shop.end() == 0
    words = ("dead", "edit", shell("dead", "ls", "--json").json[0]["example"])
    shell.env["EDITOR"] = "sed -i -e $a\\\\"
    assert "nothing was changed" in shell(*words).err
    shell.env["EDITOR"] = "sed -i -e s/no/an/ -e $a\\\\"
    shell(*words)
    (event,) = shell("peek", "_group.shop.bill", "--json").json
    assert event["data"] == "an order at all"


# -- what succeeds in part


@pytest.mark.slow
async def test_what_was_accepted_is_marked(shell: Shell) -> None:
    """A bus that takes two of three: the next replay is of the third alone."""
    with fresh("nats") as mine:
        shell.env["TIDINGS_URL"] = mine.url
        shell.write("shop.py", SHOP.replace("sqlite:///shop.db", mine.url))
        shop = shell.start("run", "shop")
        shop.until("listens on")
        for id, length in (("A1", 1), ("A2", 40_000), ("A3", 1)):
            order = json.dumps({"id": id, "total": -1})
            shell("publish", "orders.placed", order, "--key", id, "--header", f"note={'x' * length}")
            shop.until("dead letter of shop.bill")
        assert shop.end() == 0
        client = await nats.connect(mine.url)
        (stream,) = await client.jetstream().streams_info()
        told = await client.request(f"$JS.API.STREAM.INFO.{stream.config.name}")
        smaller = json.loads(told.data)["config"] | {"max_msg_size": 36_000}  # A2 had room only when it was published
        await client.request(f"$JS.API.STREAM.UPDATE.{stream.config.name}", json.dumps(smaller).encode())
        await client.close()
        assert "2 dead letters went to the group" in shell("dead", "replay", "--all", code=1).err
        found = shell("dead", "ls", "--all", "--json").json
        assert {letter["key"]: letter["mark"] for letter in found} == {"A1": "replayed", "A2": "", "A3": "replayed"}


# -- purge


def test_purge(shell: Shell, letters: Letters) -> None:
    first, second = letters
    shell("dead", "replay", first["id"])
    words = ("dead", "purge", "--error", "ValueError")
    assert "nobody is there to be asked" in shell(*words, code=2).err
    said = "2 dead letters, of which 1 were never replayed\n"
    assert shell(*words, "--dry-run").out == f"would purge {said}"
    assert shell.on_terminal(*words, keys="n\n", after="[y/N]").out.endswith(f"kept {said}")
    assert len(shell("dead", "ls", "--all", "--json").json) == 2
    assert shell("dead", "purge", second["id"], "-y", "--json").json["purged"] == 1
    assert [letter["id"] for letter in shell("dead", "ls", "--all", "--json").json] == [first["id"]]
    assert shell("dead", "purge", "--all", "-y").out == "purged 1 dead letter, of which 0 were never replayed\n"
    assert "no dead letters" in shell("dead", "ls").err
    assert [group["dead"] for group in shell("groups", "shop.bill", "--json").json] == [0]
