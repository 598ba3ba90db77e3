"""``tidings pause``, ``resume``, ``concurrency``: every process of an app is reached, over the bus."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.engines import ENGINES, engine_bus

from tidings import App
from tidings.cli.control import _tell
from tidings.control import CONTROL, Answer, Order, draft
from tidings.kernel.codec import seal
from tidings.kernel.transport import Subscription

from .conftest import PATIENCE, Running, Shell

SHOP = """
import asyncio
from tidings import App

app = App("shop")

@app.on("orders.placed", concurrency=2)
async def bill(n: int) -> None:
    print("billed", n, flush=True)
    with open("billed.txt", "a") as file:
        print(n, file=file)

@app.on("orders.placed", run="thread")
def index(n: int) -> None: ...

@app.every("1h")
async def sample() -> None: ...
"""

BLOCK = """
import os, time

@app.on("block")
async def block(n: int) -> None:
    with open("blocking.txt", "w") as file:
        print(os.getpid(), file=file)
    os.rename("blocking.txt", "blocked.txt")
    while not os.path.exists("go"):
        time.sleep(0.01)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def billed(shell: Shell) -> int:
    file = shell.folder / "billed.txt"
    return len(file.read_text().split()) if file.exists() else 0


def started(shell: Shell) -> Running:
    running = shell.start("run", "shop")
    running.until("listens on")
    return running


def place(shell: Shell, count: int) -> None:
    shell("publish", "orders.placed", "--lines", input="".join(f"{n}\n" for n in range(count)))


def answers(shell: Shell, *words: str) -> dict[int, dict[str, Any]]:
    """What each process, by its pid, said."""
    return {answer["pid"]: answer for answer in shell(*words, "--json").json["answers"]}


def nothing_before(running: Running, line: str) -> None:
    """Nothing was billed before it said this."""
    said = [line in told for told in running.lines]
    assert not any("billed" in told for told in running.lines[: said.index(True)]), running.lines


@pytest.fixture
def app(nowhere: Shell) -> Shell:
    nowhere.write("shop.py", SHOP)
    nowhere.env["TIDINGS_URL"] = "sqlite:///shop.db"
    return nowhere


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_processes_on_a_server(app: Shell, engine: str) -> None:
    url: Any = engine_bus(engine).url
    app.env["TIDINGS_URL"] = url(30.0)
    remembers = engine != "rabbitmq"
    first, second = started(app), started(app)
    both = {first.process.pid, second.process.pid}
    paused = app("pause", "shop.bill", "--wait", "20s")
    assert [line.split()[0:3:2] for line in paused.out.splitlines()[1:]] == [["shop.bill", "paused"]] * 2
    assert ("keeps no record" in paused.err) is not remembers
    if remembers:
        place(app, 5)
    third = app.start("run", "shop")
    third.until("shop.bill is paused")
    if not remembers:
        place(app, 5)
    resumed = answers(app, "resume", "shop.bill", "--wait", "20s")
    if remembers:
        assert resumed.keys() == both | {third.process.pid}
    else:  # the third is no member yet, where it has never asked for messages: one of the three may be too late
        assert len(resumed) >= 2
    assert not any(answer["paused"] for answer in resumed.values())
    until(lambda: billed(app) == 5)
    until(lambda: app("groups", "shop.bill", "--json").json[0]["members"] == 3)
    sized = answers(app, "concurrency", "shop.bill", "8", "--wait", "20s")
    assert [answer["concurrency"] for answer in sized.values()] == [8, 8, 8]
    for running in (first, second, third):
        assert running.end() == 0
        nothing_before(running, "goes on")
    nobody = app("pause", "shop.bill", "--wait", "100ms", code=4)
    assert "TDG-E041" in nobody.err
    assert ("is recorded" in nobody.err) is remembers
    late = started(app)
    assert any("is paused until" in line for line in late.lines) is remembers
    assert late.end() == 0


@pytest.mark.slow
async def test_who_is_no_member_yet_is_waited_for() -> None:
    """Of three that answer the bus counts two; the third answers after them."""
    url: Any = engine_bus("rabbitmq").url
    async with App("asker", url(30.0)).connect() as app:
        bus, order = app.bus(), Order(group="shop.bill", paused=True)
        ears = [await bus.subscribe(Subscription(app="shop", pattern=CONTROL + "shop")) for _ in range(3)]

        async def answer(pid: int, after: int) -> None:
            heard: list[Any] = []
            while len(heard) < 1 + after:  # the order, and so many answers
                heard += [delivery.message for delivery in await ears[pid].receive(10)]
            mine = Answer(group="shop.bill", host="here", pid=pid, paused=True, concurrency=1)
            sealed = seal(draft("shop", mine, heard[0].id), now=time.time(), source="shop")
            assert not await bus.publish([sealed])

        told = _tell(app, "shop", [order], {"shop.bill": 2}, timeout=PATIENCE)
        answers, *_ = await asyncio.gather(told, answer(0, 0), answer(1, 0), answer(2, 2))
        assert sorted(answer.pid for answer in answers) == [0, 1, 2]
        for ear in ears:
            await ear.close()


def test_two_processes_and_what_is_printed(app: Shell) -> None:
    first, second = started(app), started(app)
    pids = sorted([first.process.pid, second.process.pid], key=str)
    paused = app("pause", "shop.bill")
    table = [line.split() for line in paused.out.splitlines()]
    assert table[0] == ["GROUP", "PROCESS", "NOW", "CONCURRENCY"]
    assert [[row[0], int(row[1].rpartition(":")[2]), *row[2:]] for row in table[1:]] == [
        ["shop.bill", pid, "paused", "2"] for pid in pids
    ]
    assert paused.err == ""
    place(app, 3)
    shown = app.on_terminal("concurrency", "shop.>", "5").out
    assert all(f":{pid}" in shown for pid in pids)
    assert "paused" in shown
    assert "shop.sample" not in shown, "ticks are handled one by one"
    assert billed(app) == 0
    app("resume", "shop.bill")
    until(lambda: billed(app) == 3)
    back = answers(app, "concurrency", "shop.bill", "default")
    assert [answer["concurrency"] for answer in back.values()] == [2, 2]
    for running in (first, second):
        assert running.end() == 0
        nothing_before(running, "goes on")


def test_one_that_starts_later_knows(app: Shell) -> None:
    """Before it takes a message; and the record says who ordered what, and what came of it."""
    running = started(app)
    app("pause", "shop.bill")
    app("concurrency", "shop.index", "3")
    running.process.kill()
    running.process.wait()
    place(app, 3)
    (bill,) = app("groups", "shop.bill", "--json").json
    assert (bill["paused"], "@" in bill["paused_by"]) == (True, True)
    assert [line.split()[-2:] for line in app("groups").out.splitlines() if "shop.bill" in line] == [
        ["by", bill["paused_by"]]
    ]
    later = started(app)
    assert any("shop.bill is paused until `tidings resume shop.bill`" in line for line in later.lines)
    assert any("shop.index handles 3 at once" in line for line in later.lines)
    resumed = app("resume", "shop.bill", "--json").json
    assert [order["paused"] for order in resumed["orders"]] == [False]
    until(lambda: billed(app) == 3)
    assert "PAUSED" not in app("groups").out
    assert later.end() == 0
    nothing_before(later, "goes on")
    record = app("tail", "_tidings.control.>", "--since", "first", "--limit", "6", "--json").out
    said = [event["data"] for event in map(json.loads, record.splitlines())]
    assert [(each["kind"], each["group"]) for each in said] == [
        (kind, group) for group in ("shop.bill", "shop.index", "shop.bill") for kind in ("order", "answer")
    ]
    assert all("@" in each["by"] for each in said[::2])
    assert [each["pid"] for each in said[1::2]] == [running.process.pid] * 2 + [later.process.pid]


def test_a_process_that_does_not_answer(app: Shell) -> None:
    """It is said how many; what did answer is printed all the same. (A handler blocks the event loop of one.)"""
    app.write("shop.py", SHOP + BLOCK)
    both = {running.process.pid: running for running in (started(app), started(app))}
    app("publish", "block", "1")
    until(lambda: (app.folder / "blocked.txt").exists())
    second = both.pop(int((app.folder / "blocked.txt").read_text()))
    (first,) = both.values()
    silent = app("pause", "shop.bill", "--wait", "5s", code=4)
    assert f":{first.process.pid}" in silent.out
    assert f":{second.process.pid}" not in silent.out
    assert "TDG-E042: 1 of 2 processes of shop.bill did not answer within 5s" in silent.err
    assert json.loads(app("resume", "shop.bill", "--wait", "5s", "--json", code=4).err)["error"]["code"] == "TDG-E042"
    app.write("go", "")
    second.until("goes on")
    assert (first.end(), second.end()) == (0, 0)


def test_dry_run(app: Shell) -> None:
    running = started(app)
    assert app("pause", "shop.bill", "--dry-run").out == "would pause shop.bill in 1 process\n"
    sized = app("concurrency", "shop.>", "4", "--dry-run").out.splitlines()
    assert sized == [f"would set the concurrency of shop.{name} to 4 in 1 process" for name in ("bill", "index")]
    assert app("concurrency", "shop.bill", "4", "--dry-run", "--json").json["sent"] is False
    assert answers(app, "concurrency", "shop.bill", "default")[running.process.pid]["paused"] is False
    assert running.end() == 0
    assert not any("paused" in line for line in running.lines)


def test_what_is_refused(app: Shell, tmp_path: Path) -> None:
    assert started(app).end() == 0
    refused = app.all(
        [
            ["pause", "shop.bil"],
            ["resume", "shop"],
            ["pause", "shop.*.>.x"],
            ["concurrency", "shop.bill", "0"],
            ["concurrency", "shop.bill", "many"],
            ["concurrency", "shop.sample", "4"],
            ["pause", "shop.bill", "--wait", "soon"],
            ["pause", "shop.bill", "--url", "memory://"],
            ["pause"],
        ]
    )
    codes = [
        ("TDG-E012", "did you mean 'shop.bill'?"),
        ("TDG-E012", "shop.> for all of them"),
        ("TDG-E001", "no valid pattern"),
        ("TDG-E002", "a number from 1 to 10,000, or default"),
        ("TDG-E002", "a number from 1 to 10,000, or default"),
        ("TDG-E005", "one by one"),
        ("TDG-E002", "--wait"),
        ("TDG-E005", "cannot be reached from another process"),
        ("TDG-E002", "tidings pause --help"),
    ]
    for (code, out, err, _), (number, text) in zip(refused, codes, strict=True):
        assert (code, out) == (2, ""), err
        assert number in err
        assert text in err
