"""``tidings run``: finding the app, saying what listens, draining."""

from __future__ import annotations

import json
import re
import signal
import socket

import pytest

from .conftest import SHOP, Shell

SLOW = """
import asyncio
from pathlib import Path
from tidings import App

app = App("slow", "sqlite:///slow.db")

@app.on("jobs")
async def work(n: int) -> None:
    print("started", n, flush=True)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    print("finished", n, flush=True)
"""

CHILD = """
import os
from tidings import App, Message, Topic

app = App("work", "sqlite:///work.db")
done = Topic("done", int)

@app.on(Topic("jobs", int), run="process", concurrency=1)
def render(n: int) -> Message[int]:
    return done(os.getpid())

@app.on(done)
async def tell(pid: int) -> None:
    print("rendered by", pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drains(nowhere: Shell, number: signal.Signals) -> None:
    nowhere.write("slow.py", SLOW)
    running = nowhere.start("run", "slow:app")
    running.until("listens on")
    nowhere("publish", "jobs", "7", "--url", "sqlite:///slow.db")
    running.until("started 7")
    running.process.send_signal(number)
    nowhere.write("go", "")
    running.until("finished 7")
    assert running.end(number) == 0
    assert "slow stopped: 1 handled" in running.lines[-1]
    (group,) = nowhere("groups", "--json", "--url", "sqlite:///slow.db").json
    assert (group["lag"], group["in_flight"], group["members"]) == (0, 0, 0)


def test_says_what_listens(nowhere: Shell) -> None:
    extra = '\n@app.on("stock.{item}.low", live=True)\ndef low(item: str) -> None: ...\n'
    extra += '\n@app.every("1h")\nasync def sweep() -> None: ...\n'
    extra += '\n@app.cron("0 9 * * *", each=True)\nasync def wake() -> None: ...\n'
    nowhere.write("shop.py", SHOP + extra)
    running = nowhere.start("run", "shop:app")
    assert f"shop listens on sqlite:///{nowhere.folder}/shop.db (process {running.process.pid})" in running.until(
        "shop"
    )
    running.until("each")
    assert running.end() == 0
    lines = [re.split(r"  +", line.strip()) for line in running.lines]
    assert ["GROUP", "LISTENS_TO", "HANDLER"] in lines
    said = {row[2].split()[0]: row[:2] for row in lines if len(row) == 3}
    assert said["bill"] == ["shop.bill", "orders.placed"]
    assert said["quote"] == ["prices.quote", "prices.quote"]
    assert said["low"] == ["live", "stock.{item}.low"]
    assert said["sweep"] == ["shop.sweep", "every 3600 s"]
    assert said["wake"] == ["each", "0 9 * * * UTC"]


def test_json(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("run", "shop", "--json", "--url", "sqlite:///other.db")
    told = json.loads(running.until("handlers"))
    assert (told["app"], told["pid"]) == ("shop", running.process.pid)
    assert told["buses"] == {"": f"sqlite:///{nowhere.folder}/other.db"}
    assert [handler["group"] for handler in told["handlers"]] == ["shop.bill", "prices.quote", "count"]
    assert running.end() == 0
    assert json.loads(running.lines[-1]) == {"stopped": "shop"}


def test_a_file_whose_handlers_run_in_processes(nowhere: Shell) -> None:
    nowhere.write("deep/src/work.py", CHILD)
    running = nowhere.start("run", "deep/src/work.py:app")
    running.until("listens on")
    nowhere("publish", "jobs", "7", "--url", "sqlite:///work.db")
    pid = int(running.until("rendered by").split()[-1])
    assert pid != running.process.pid
    assert running.end() == 0


def test_a_file_in_a_package(nowhere: Shell) -> None:
    nowhere.write("src/pkg/__init__.py", "")
    nowhere.write("src/pkg/names.py", 'NAME = "packed"')
    nowhere.write("src/pkg/shop.py", SHOP.replace('"shop", "', 'NAME, "') + "\n")
    source = (nowhere.folder / "src/pkg/shop.py").read_text()
    nowhere.write("src/pkg/shop.py", "from .names import NAME\n" + source)
    running = nowhere.start("run", "src/pkg/shop.py")
    running.until("packed listens on")
    assert running.end() == 0


@pytest.mark.parametrize("setting", ["option", "variable", "project"])
def test_which_bus(nowhere: Shell, setting: str) -> None:
    nowhere.write("shop.py", SHOP)
    nowhere.write("pyproject.toml", '[tool.tidings]\nurl = "sqlite:///project.db"\n')
    words = ["--url", "sqlite:///option.db"] if setting == "option" else []
    if setting != "project":
        nowhere.env["TIDINGS_URL"] = "sqlite:///variable.db"
    running = nowhere.start("run", "shop", *words)
    assert f"/{setting}.db " in running.until("listens on")
    assert running.end() == 0


TARGETS = [
    ("shp", "did you mean 'shop'?"),
    ("shop:ap", "did you mean 'app'?"),
    ("shop.app", "write shop:app"),
    ("shop:placed", "is no App: it is of type Topic"),
    ("two", "say which: two:a or two:b"),
    ("two:a", "TDG-E011"),
    ("none", "has no App"),
    ("shp.py", "did you mean 'shop.py'?"),
    ("nix/shop.py:app", "there is no file"),
    ("pkg.shp", "did you mean 'pkg.shop'?"),
    ("", "there is no module ''"),
    ("asyncio.py", "is hidden by"),
]


def test_no_such_app(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    nowhere.write("two.py", "from tidings import App\na, b = App('a'), App('b')\n")
    nowhere.write("none.py", "app = 1\n")
    nowhere.write("asyncio.py", "")
    nowhere.write("pkg/__init__.py", "")
    nowhere.write("pkg/shop.py", SHOP)
    results = nowhere.all([["run", target] for target, _ in TARGETS])
    wrong = [
        (target, said, result)
        for (target, said), result in zip(TARGETS, results, strict=True)
        if result[:2] != (2, "") or said not in result[2] or not result[2].startswith("TDG-E01")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f():\n    1 / 0\nf()", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import nix_nix", "No module named 'nix_nix'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_the_users_module_fails(nowhere: Shell, source: str, said: str) -> None:
    nowhere.write("bad.py", source)
    lines = nowhere("run", "bad", code=1).err.splitlines()
    assert lines[0].startswith(f'  File "{nowhere.folder}/bad.py", line')
    assert said in lines[-2]
    assert lines[-1] == "importing bad failed"
    told = json.loads(nowhere("run", "bad", "--json", code=1).err)
    assert said in told["error"]["what"]


def test_a_declaration_that_is_refused_names_its_line(nowhere: Shell) -> None:
    nowhere.write("bad.py", "from tidings import App\napp = App('a')\n@app.on('a', conurrency=3)\ndef f(x: int): ...\n")
    refused = nowhere("run", "bad", code=2).err
    assert refused.startswith("TDG-E002")
    assert f"where: {nowhere.folder}/bad.py:" in refused
    assert "did you mean 'concurrency'?" in refused


def test_a_dependency_that_fails_at_the_start(nowhere: Shell) -> None:
    source = SHOP.replace("async def bill(order: Order)", "async def bill(order: Order, db: Annotated[int, D])")
    head = (
        "from typing import Annotated\nfrom tidings import Depends\ndef connect() -> int:\n    raise OSError('no db')\n"
    )
    nowhere.write("shop.py", head + 'D = Depends(connect, scope="app")\n' + source)
    failed = nowhere("run", "shop", code=1).err
    assert "OSError: no db\nrunning shop failed" in failed
    assert failed.index("in connect") < failed.index("OSError")
    assert "tidings/app.py" not in failed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_connects(nowhere: Shell, number: signal.Signals) -> None:
    """To a server that takes the connection and says nothing."""
    nowhere.write("shop.py", SHOP)
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = nowhere.start("run", "shop", "--url", f"nats://127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection:
            assert running.end(number) == 0
    assert running.lines == ["shop stopped before it was connected\n"]


def test_names_of_other_libraries(nowhere: Shell) -> None:
    nowhere.write("bad.py", 'from tidings import App\n\napp = App("bad", "memory://")\n\n\n@app.task\ndef f(): ...\n')
    said = nowhere("run", "bad", code=1).err.splitlines()
    assert said[-1] == "  mend:  here it is @app.on(topic)"
    assert any("bad.py" in line and "line 6" in line for line in said)
