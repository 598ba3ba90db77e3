"""``tidings purge``: a group skips what waits for it, and only that group."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
from contextlib import suppress

from .conftest import PATIENCE, SCRIPT, Shell


def order(id: str, total: int = 1) -> str:
    return json.dumps({"id": id, "total": total})


def test_a_group_skips_what_waits(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", "--lines", input=f"{order('A1')}\n{order('A2')}\n")
    assert shell("purge", "shop.bill", "--dry-run").out == "would skip 2 messages of shop.bill\n"
    assert "nobody is there to be asked" in shell("purge", "shop.bill", code=2).err
    assert shell.on_terminal("purge", "shop.bill", keys="n\n", after="[y/N]").out.endswith(
        "kept 2 messages of shop.bill\n"
    )
    assert shell("purge", "shop.bill", "--yes").out == "skipped 2 messages of shop.bill\n"
    assert shell("purge", "shop.bill", "--yes", "--json").json == {
        "group": "shop.bill",
        "waiting": 0,
        "skipped": 0,
        "dry_run": False,
        "left": 0,
    }
    shell("publish", "orders.placed", order("A3"))
    shop = shell.start("run", "shop")
    shop.until("billed A3")
    assert shop.end() == 0
    assert not any("A1" in line or "A2" in line for line in shop.lines)
    assert shell("topics", "orders.placed", "--json").json[0]["messages"] == 3  # nothing is erased


def test_ctrl_c_is_a_no(shell: Shell, known: None) -> None:
    """It ends the question at once, on a terminal that is the process's own."""
    shell("publish", "orders.placed", order("A1"))
    process, ours = pty.fork()
    if not process:
        os.chdir(shell.folder)
        os.execve(SCRIPT, [SCRIPT, "purge", "shop.bill"], shell.env)
    shown, typed = b"", False
    with suppress(OSError):  # the terminal is gone with its last process
        while select.select([ours], [], [], PATIENCE)[0]:
            shown += os.read(ours, 65536)
            if b"[y/N]" in shown and not typed:
                typed = bool(os.write(ours, b"\x03"))
        os.kill(process, signal.SIGKILL)  # it still waits
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert b"skipped" not in shown
    assert shell("purge", "shop.bill", "--dry-run").out == "would skip 1 message of shop.bill\n"


def test_what_is_refused(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", order("A1"))
    refused = shell("purge", "orders.placed", code=2).err
    assert "a topic cannot be purged" in refused
    assert "tidings purge shop.bill" in refused
    assert "did you mean 'shop.bill'?" in shell("purge", "shop.bil", "-y", code=2).err
    shop = shell.start("run", "shop")
    shop.until("billed A1")
    assert "has members at work" in shell("purge", "shop.bill", "-y", code=3).err
    assert shop.end() == 0
