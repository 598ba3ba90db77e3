"""``tidings groups``: list, watch, rename, retire, drop."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess

from .conftest import PATIENCE, SCRIPT, Running, Shell

GROUPS = ["count", "prices.quote", "shop.bill"]


def test_list(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    listed = {group["name"]: group for group in shell("groups", "--json").json}
    assert sorted(listed) == GROUPS
    bill = listed["shop.bill"]
    oldest = bill.pop("oldest")
    assert oldest.endswith("Z")
    assert bill == {
        "name": "shop.bill",
        "app": "shop",
        "pattern": "orders.placed",
        "lag": 1,
        "in_flight": 0,
        "parked": 0,
        "dead": 0,
        "members": 0,
        "paused": False,
        "paused_by": None,
    }
    heading, *lines = shell("groups").out.splitlines()
    assert heading.split() == ["GROUP", "APP", "PATTERN", "LAG", "IN_FLIGHT", "PARKED", "DEAD", "OLDEST", "MEMBERS"]
    assert [line.split()[0] for line in lines] == GROUPS
    assert {line.index("shop  ") for line in lines} == {heading.index("APP")}
    assert [group["name"] for group in shell("groups", "shop.>", "--json").json] == ["shop.bill"]


def test_members(shell: Shell, shop: Running) -> None:
    assert {group["members"] for group in shell("groups", "--json").json} == {1}
    assert "members at work" in shell("groups", "drop", "shop.bill", "--yes", code=3).err
    assert "members at work" in shell("groups", "rename", "shop.bill", "shop.x", code=3).err


def test_on_a_terminal(shell: Shell, known: None) -> None:
    shown = shell.on_terminal("groups").out
    assert "───" in shown
    assert "\x1b[" in shown
    assert "shop.bill" in shown


def test_rates(shell: Shell, known: None) -> None:
    (bill,) = shell("groups", "shop.bill", "--rates", "--interval", "100ms", "--json").json
    assert (bill["rate_in"], bill["rate_out"]) == (0, 0)
    heading, line = shell("groups", "shop.bill", "--rates", "--interval=100ms").out.splitlines()
    assert heading.split()[7:9] == ["IN/S", "OUT/S"]
    assert line.split()[7:9] == ["0", "0"]
    assert "at least 100ms" in shell("groups", "--rates", "--interval", "0s", code=2).err


def test_watch_says_how_many_come_and_how_many_are_settled(shell: Shell, known: None) -> None:
    watch = shell.start("groups", "shop.bill", "--watch", "--interval", "200ms", "--json")
    watch.until('"rate_in":null')  # the first look has none before it
    shell("publish", "orders.placed", "--lines", input='{"id": "1", "total": 1}\n' * 7)
    watch.until('"lag":7')
    shop = shell.start("run", "shop")
    watch.until('"members":1')
    while json.loads(watch.until("groups"))["groups"][0]["lag"]:
        pass
    assert shop.end() == 0
    assert watch.end(signal.SIGINT) == 0
    looks = [json.loads(line)["groups"][0] for line in watch.lines]
    came = sum(look["rate_in"] or 0 for look in looks)
    settled = sum(look["rate_out"] or 0 for look in looks)
    assert 0 < came <= 7 / 0.2
    assert 0 < settled <= 7 / 0.2
    waited = [look for look in looks if look["lag"] == 7 and not look["members"]]
    assert {look["rate_out"] for look in waited} == {0}


def test_watch_in_a_pipe(shell: Shell, known: None) -> None:
    watch = shell.start("groups", "shop.bill", "--watch", "--interval", "100ms")
    heading = watch.until("GROUP")
    assert heading.split()[:2] == ["TIME", "GROUP"]
    watch.until("GROUP")
    assert watch.end() == 0


def test_watch_on_a_terminal(shell: Shell, known: None) -> None:
    ours, theirs = pty.openpty()
    words = [SCRIPT, "groups", "--watch", "--interval", "100ms"]
    with subprocess.Popen(words, cwd=shell.folder, env=shell.env, stdin=theirs, stdout=theirs, stderr=theirs) as watch:
        os.close(theirs)
        shown = b""
        while shown.count(b"shop.bill") < 3:
            shown += os.read(ours, 65536)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE) == 0
    os.close(ours)
    assert b"\x1b[1A" in shown  # a table is drawn over the one before


def test_none_yet(shell: Shell) -> None:
    shell("publish", "a", "1")
    nothing = shell("groups")
    assert (nothing.out, "no groups yet" in nothing.err) == ("", True)
    assert shell("groups", "--json").json == []


def test_rename_keeps_the_backlog(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "kept", "total": 1}')
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def bill(", "def invoice("))
    assert shell("groups", "rename", "shop.bill", "shop.invoice").out == "renamed shop.bill to shop.invoice\n"
    running = shell.start("run", "shop")
    running.until("billed kept")
    assert running.end() == 0


def test_rename_rehearsed(shell: Shell, known: None) -> None:
    words = ["groups", "rename", "shop.bill"]
    assert shell(*words, "shop.invoice", "--dry-run").out == "would rename shop.bill to shop.invoice\n"
    assert "'count' exists" in shell(*words, "count", "--dry-run", code=3).err
    assert "did you mean 'shop.bill'?" in shell("groups", "rename", "shop.bil", "x", "--dry-run", code=2).err
    assert sorted(group["name"] for group in shell("groups", "--json").json) == GROUPS


def test_retire_by_the_code(shell: Shell, known: None) -> None:
    code = shell.write("other.py", "from tidings import App\nother = App('other')\n").stem
    assert "has a handler" in shell("groups", "retire", "shop.bill", "--app", "shop", code=2).err
    assert "bill() at" in shell("groups", "retire", "shop.bill", "--app", "shop.py", code=2).err
    assert "has a handler" in shell("groups", "retire", "count", "--app", "shop", code=2).err
    assert "this is the code of other" in shell("groups", "retire", "shop.bill", "--app", code, code=2).err
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def bill(", "def invoice("))
    words = ["groups", "retire", "shop.bill", "--app", "shop"]
    assert shell(*words, "--dry-run").out == "would retire shop.bill\n"
    assert len(shell("groups", "--json").json) == 3
    assert shell(*words, "--json").json == {"group": "shop.bill", "retired": True, "dry_run": False, "dead": 0}
    assert [group["name"] for group in shell("groups", "--json").json] == ["count", "prices.quote"]
    assert "there is no group 'shop.bill'" in shell(*words, code=2).err


def test_retire_by_what_runs(shell: Shell, known: None) -> None:
    assert "nothing shows that this one is gone" in shell("groups", "retire", "shop.bill", code=2).err
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def bill(", "def invoice("))
    shop = shell.start("run", "shop")
    shop.until("listens on")
    assert "members at work" in shell("groups", "retire", "shop.invoice", code=3).err
    assert shell("groups", "retire", "shop.bill").out == "retired shop.bill\n"
    assert shop.end() == 0


def test_retire_loses_nothing(shell: Shell, letters: list[dict[str, object]]) -> None:
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def bill(", "def invoice("))
    shop = shell.start("run", "shop")
    shop.until("listens on")
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    shop.until("billed 1")
    refused = shell("groups", "retire", "shop.bill", code=2).err
    assert "1 message waits for shop.bill" in refused
    assert "groups rename shop.bill NEW" in refused
    assert "shop.invoice now: that one must be dropped" in refused
    assert shop.end() == 0
    shell("groups", "drop", "shop.invoice", "--yes")
    shell("groups", "rename", "shop.bill", "shop.invoice")
    shop = shell.start("run", "shop")
    shop.until("billed 1")
    assert shop.end() == 0
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def invoice(", "def charge("))
    retired = shell("groups", "retire", "shop.invoice", "--app", "shop")
    assert retired.out == "retired shop.invoice\n"
    assert [pile["dead"] for pile in shell("dead", "ls", "--json").json] == [2]


def test_drop(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    refused = shell("groups", "drop", "shop.bill", code=2)
    assert "--yes" in refused.err
    assert shell("groups", "drop", "shop.bill", "--dry-run").out.startswith("would drop shop.bill; 1 messages")
    kept = shell.on_terminal("groups", "drop", "shop.bill", keys="n\n", after="[y/N]")
    assert "kept shop.bill" in kept.out
    assert len(shell("groups", "--json").json) == 3
    dropped = shell.on_terminal("groups", "drop", "shop.bill", keys="y\n", after="[y/N]")
    assert "dropped shop.bill" in dropped.out
    assert shell("groups", "drop", "count", "-y", "--json").json == {"group": "count", "waiting": 0, "dropped": True}
    assert [group["name"] for group in shell("groups", "--json").json] == ["prices.quote"]


def test_nearest_group(shell: Shell, known: None) -> None:
    for words in (["groups", "shop.bil"], ["groups", "drop", "shop.bil", "-y"], ["groups", "rename", "shop.bil", "x"]):
        assert "did you mean 'shop.bill'?" in shell(*words, code=2).err
    assert "shop.>" in shell("groups", "shop", code=2).err
