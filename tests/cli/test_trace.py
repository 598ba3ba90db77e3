"""``tidings trace``: the path of a message, from any message of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tidings import App, Message
from tidings.cli._path import Hop, follow, tree
from tidings.kernel.transport import Inspectable

from .conftest import Shell

CHAIN = """
from tidings import App, Backoff, Topic

app = App("chain", "sqlite:///shop.db", backoff=Backoff(attempts=1))
ordered, billed, mailed = Topic("orders.placed", str), Topic("billing.done", str), Topic("mail.sent", str)

@app.on(ordered, to=billed)
async def bill(order: str) -> str:
    return order

@app.on(ordered)
async def stock(order: str) -> None: ...

@app.on(billed)
async def mail(order: str):
    if "bad" in order:
        raise ConnectionError("no\\nmail today")
    return [mailed(order), mailed("copy of " + order)]

@app.on(mailed)
async def archive(order: str) -> None:
    print("archived", order, flush=True)
"""

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


@pytest.fixture(scope="module")
def handled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder where two orders were handled, "good" and "bad", and their ids."""
    shell = Shell(tmp_path_factory.mktemp("chain"))
    shell.env["TIDINGS_URL"] = "sqlite:///shop.db"
    shell.write("chain.py", CHAIN)
    found = {}
    with shell.stack:
        running = shell.start("run", "chain")
        running.until("listens on")
        for order, said in (("bad", "dead letter of chain.mail"), ("good", "archived copy of good")):
            found[order] = shell("publish", "orders.placed", order, "--json").json["id"]
            running.until(said)
        assert running.end() == 0, running.lines
    return shell.folder, found


@pytest.fixture
def ids(shell: Shell, handled: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """The same, here."""
    folder, found = handled
    shutil.copytree(folder, shell.folder, dirs_exist_ok=True)
    return found


def test_the_whole_path(shell: Shell, ids: dict[str, str]) -> None:
    shown = shell("trace", ids["good"])
    hop = r"\+[\d.]+ m?s  (copy of )?good  [0-9a-f]{32}"
    expected = [
        rf"orders\.placed  {TIME}  good  {ids['good']}  ←",
        r"├── chain\.bill  sent 1",
        rf"│   └── billing\.done  {hop}",
        r"│       └── chain\.mail  sent 2",
        rf"│           ├── mail\.sent  {hop}",
        r"│           │   └── chain\.archive  sent nothing",
        rf"│           └── mail\.sent  {hop}",
        r"│               └── chain\.archive  sent nothing",
        r"└── chain\.stock  sent nothing",
    ]
    lines = shown.out.splitlines()
    assert len(lines) == len(expected), shown
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert re.fullmatch(r"scanned \d of \d\n", shown.err)


def test_from_any_message_of_it(shell: Shell, ids: dict[str, str]) -> None:
    told = shell("trace", ids["good"], "--json").json
    assert (told["root"], told["removed"], len(told["path"])) == (ids["good"], 0, 4)
    names = [hop["id"] for hop in told["path"]]
    for name, (_, out, *_) in zip(names, shell.all([["trace", name, "--json"] for name in names]), strict=True):
        assert json.loads(out) == told | {"asked": name}
    billed = told["path"][1]
    assert (billed["parent"], billed["by"]) == (ids["good"], "chain.bill")
    assert billed["message"]["causationid"] == ids["good"]
    assert [(group["group"], len(group["sent"])) for group in billed["groups"]] == [("chain.mail", 2)]
    assert shell("trace", billed["id"][:12], "--json").json["asked"] == billed["id"]
    marked = [line for line in shell("trace", billed["id"]).out.splitlines() if line.endswith("←")]
    assert len(marked) == 1
    assert "billing.done" in marked[0]


def test_what_died_and_was_replayed(shell: Shell, ids: dict[str, str]) -> None:
    line = shell("trace", ids["bad"]).out.splitlines()[3]
    assert re.fullmatch(r"│       └── chain\.mail  dead letter: ConnectionError: no\\nmail today  \+[\d.]+ m?s", line)
    shell("dead", "replay", "--all")
    assert re.search(r"no\\nmail today  \+[\d.]+ m?s; replayed \+[\d.]+ m?s$", shell("trace", ids["bad"]).out, re.M)
    shell.write("chain.py", (shell.folder / "chain.py").read_text().replace('"bad" in order', "False"))
    running = shell.start("run", "chain")
    running.until("archived copy of bad")
    assert running.end() == 0
    told = shell("trace", ids["bad"], "--json").json
    (mail,) = (group for hop in told["path"] for group in hop["groups"] if group["group"] == "chain.mail")
    assert (mail["outcome"], len(mail["sent"]), mail["letter"]["error"]) == ("replayed", 2, "ConnectionError")
    assert mail["replayed"].endswith("Z")


def test_a_group_that_has_another_name_now(shell: Shell, ids: dict[str, str]) -> None:
    shell("groups", "rename", "chain.bill", "chain.charge")
    told = shell("trace", ids["bad"])
    assert re.search(r"^├── chain\.charge  sent nothing$", told.out, re.M)
    assert re.search(r"^└── billing\.done  \+[\d.]+ m?s  bad  by a handler of chain  [0-9a-f]{32}$", told.out, re.M)


def test_what_waits(shell: Shell, ids: dict[str, str]) -> None:
    id = shell("publish", "orders.placed", "late", "--json").json["id"]
    shown = shell("trace", id).out
    assert "chain.bill  perhaps not done yet: 1 wait there, the oldest for" in shown
    due = shell("publish", "orders.placed", "later", "--delay", "2h", "--json").json["id"]
    assert "it is not due yet" in shell("trace", due, code=2).err


def test_on_a_terminal(shell: Shell, ids: dict[str, str]) -> None:
    shown = shell.on_terminal("trace", ids["bad"]).out
    assert "\x1b[31mdead letter: ConnectionError: no\\nmail today" in shown


def test_misuse(shell: Shell, ids: dict[str, str]) -> None:
    shell("publish", "a", "--lines", input="1\n2\n")
    two = shell("peek", "a", "--json").json
    cases = [
        (["trace", two[0]["id"][:20]], f"2 ids begin with '{two[0]['id'][:20]}'"),
        (["trace", "nix"], "no retained message has the id 'nix'"),
        (["trace", ""], "no retained message has the id ''"),
        (["trace", ids["good"][:3]], "no retained message has the id"),
        (["trace", "a", "b"], "too many arguments"),
        (["trace"], "ID requires an argument"),
    ]
    for (words, said), (code, out, err, _) in zip(cases, shell.all([words for words, _ in cases]), strict=True):
        assert (code, out, said in err) == (2, "", True), (words, err)


# -- paths that retention has cut, and such as only somebody's own ids can make


def path_of(name: str, *messages: Message[Any]) -> Hop:
    async def find() -> Hop:
        app = App("t", "memory://")
        async with app.connect():
            await app.publish_many(messages)
            bus = app.bus()
            assert isinstance(bus, Inspectable)
            return tree(await follow(bus, name))

    return asyncio.run(find())


def message(id: str, cause: str | None = None, began: str | None = None) -> Message[Any]:
    return Message(f"t.{id}", body=b"1", id=id, causation_id=cause, correlation_id=began)


def shape(hop: Hop) -> Any:
    name = hop.id if not hop.gone else f"({hop.id})"
    return [name, *map(shape, hop.others)] if hop.others else name


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("b", [message("b", "a", "a")], ["(a)", "b"]),
        ("a", [message("b", "a", "a")], ["(a)", "b"]),
        ("c", [message("a"), message("c", "b", "a")], ["a", ["(b)", "c"]]),
        ("c", [message("c", "b", "a")], ["(a)", ["(b)", "c"]]),
        ("b", [message("c", "b", "a"), message("d", "b", "a")], ["(a)", ["(b)", "c", "d"]]),
        ("b", [message("b", None, "a"), message("a")], ["a", "b"]),
        ("a", [message("a"), message("b", "a", "theirs"), message("c", "b", "theirs")], ["a", ["b", "c"]]),
        ("c", [message("a"), message("b", "a", "theirs"), message("c", "b", "theirs")], ["a", ["b", "c"]]),
        ("a", [message("a"), message("x")], "a"),
        ("a", [message("a", "a", "a")], "a"),
    ],
)
def test_what_is_left_of_a_path(name: str, messages: list[Message[Any]], expected: Any) -> None:
    assert shape(path_of(name, *messages)) == expected


def test_ids_that_run_in_a_circle_or_very_deep(shell: Shell) -> None:
    async def publish() -> None:
        app = App("t", f"sqlite:///{shell.folder}/shop.db")
        async with app.connect():
            await app.publish_many([message("x", "y", "x"), message("y", "x", "x")])
            await app.publish_many(message(f"d{n}", f"d{n - 1}" if n else None, "d0") for n in range(1_200))

    asyncio.run(publish())
    assert len(shell("trace", "x").out.splitlines()) == 2
    assert len(shell("trace", "d1000").out.splitlines()) == 1_200
    assert len(shell("trace", "d1000", "--json").json["path"]) == 1_200


def test_hint_when_something_is_gone(shell: Shell) -> None:
    async def publish() -> None:
        app = App("t", f"sqlite:///{shell.folder}/shop.db")
        async with app.connect():
            await app.publish_many([message("b", "a", "a")])

    asyncio.run(publish())
    cut = shell("trace", "b")
    assert cut.out.startswith("not retained any more  a\n└── t.b  ")
    assert "a message of this path is not retained any more" in cut.err
