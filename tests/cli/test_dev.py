"""``tidings dev``: it starts anew on a change, drains before that, and says what to try."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest

from .conftest import SHOP, Running, Shell
from .test_run import SLOW

MORE = """
from datetime import datetime

class Parcel(Struct):
    sent: datetime
    size: Annotated[int, Meta(ge=3)]
    notes: list[str] = []

parcels = Topic("parcels.{depot}.sent", Parcel)

@app.on(parcels)
async def track(parcel: Parcel, depot: str) -> None:
    print("tracked at", depot, parcel.size, flush=True)

@app.every("1h")
async def sweep() -> None: ...
"""


def ready(running: Running) -> None:
    running.until("Ctrl-C ends it")


def tries(running: Running) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in running.lines if line.startswith("  tidings ")]


def test_says_what_listens_and_what_to_try(nowhere: Shell) -> None:
    nowhere.write("shop.py", "from typing import Annotated\nfrom msgspec import Meta\n" + SHOP + MORE)
    running = nowhere.start("dev")
    ready(running)
    rows = {row[2].split()[0]: row for line in running.lines if len(row := re.split(r"  +", line.strip())) == 3}
    lines = (nowhere.folder / "shop.py").read_text().splitlines()
    assert rows["bill"] == ["shop.bill", "orders.placed", f"bill (shop.py:{lines.index('@app.on(placed)') + 1})"]
    assert rows["quote"][:2] == ["prices.quote", "prices.quote"]
    assert rows["track"][:2] == ["shop.track", "parcels.{depot}.sent"]
    assert rows["sweep"][:2] == ["shop.sweep", "every 3600 s"]
    done = {}
    for words in tries(running):
        if words[0] != "tail":
            done[tuple(words[:2])] = nowhere(*words).out
    running.until("billed id")
    running.until("tracked at depot 3")
    assert done["request", "prices.quote"] == "7.5\n"
    assert done["request", "count"] == "0\n"
    assert [words[0] for words in tries(running)] == [*["publish"] * 2, *["request"] * 2, "tail", "groups", "dead"]
    assert running.end(signal.SIGINT) == 0


def test_starts_anew(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    nowhere.write("rates.py", "VAT = 1\n")
    running = nowhere.start("dev", "shop:app")
    ready(running)
    nowhere.write("shop.py", "from rates import VAT\n" + SHOP.replace('"billed"', '"mended", VAT'))
    assert running.until("changed") == "shop.py changed\n"
    ready(running)
    nowhere.write("rates.py", "VAT = 2\n")  # as long, and perhaps within the same second
    running.until("rates.py changed")
    ready(running)
    nowhere("publish", "orders.placed", '{"id": "A7", "total": 1}', "--url", "sqlite:///shop.db")
    assert running.until("A7") == "mended 2 A7\n"
    assert running.end() == 0
    assert "shop stopped: 1 handled\n" in running.lines


def test_handlers_finish_before(nowhere: Shell) -> None:
    nowhere.write("slow.py", SLOW)
    running = nowhere.start("dev")
    ready(running)
    nowhere("publish", "jobs", "7", "--url", "sqlite:///slow.db")
    running.until("started 7")
    nowhere.write("slow.py", SLOW + "\n")
    running.until("slow.py changed")
    nowhere.write("go", "")
    running.until("finished 7")
    running.until("slow stopped: 1 handled")
    ready(running)
    assert running.end() == 0


def test_waits_for_what_is_wrong_to_be_mended(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("dev")
    ready(running)
    broken = [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("@app.on('a', conurrency=3)\ndef f(x: int): ...", "did you mean 'concurrency'?"),
    ]
    for text, said in broken:
        nowhere.write("shop.py", f"{SHOP}\n{text}\n")
        running.until("shop.py changed")
        running.lines.clear()
        running.until(said)
        assert f"{nowhere.folder}/shop.py" in "".join(running.lines)
        running.until("waiting for a change")
        assert "Traceback" not in "".join(running.lines)
    nowhere.write("shop.py", SHOP)
    ready(running)
    assert running.end() == 0


def test_what_is_wrong_from_the_start(nowhere: Shell) -> None:
    nowhere.write("shop.py", f"{SHOP}\nx = (")
    running = nowhere.start("dev")
    running.until("'(' was never closed")
    running.until("waiting for a change")
    assert running.end(signal.SIGINT) == 0


def test_json(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("dev", "--json", "--url", "sqlite:///other.db")
    told = json.loads(running.until("handlers"))
    assert told["buses"] == {"": f"sqlite:///{nowhere.folder}/other.db"}
    bill = told["handlers"][0]
    assert (bill["kind"], bill["group"], bill["pattern"], bill["bus"]) == ("group", "shop.bill", "orders.placed", "")
    assert bill["handler"] == f"bill ({bill['where']})"
    assert """tidings publish orders.placed '{"id": "id", "total": 1.5}' --url sqlite:///other.db""" in told["try"]
    nowhere.write("shop.py", f"{SHOP}\n")
    assert json.loads(running.until("changed")) == {"changed": ["shop.py"]}
    running.until("handlers")
    assert running.end() == 0


def test_on_a_terminal(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP + "\n@app.on('stop')\nasync def stop(n: int) -> None:\n    app.stop()\n")
    running = nowhere.start("run", "shop", "--json")
    running.until("handlers")
    assert running.end() == 0
    nowhere("publish", "stop", "1", "--url", "sqlite:///shop.db")  # its group knows of it: the app will end itself
    shown = nowhere.on_terminal("dev", "shop", "--child").out
    assert "\x1b[1mshop\x1b[0m listens on" in shown
    assert re.search(r"\x1b\[36mtidings publish orders.placed", shown)


def test_a_memory_bus_has_nothing_to_try(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP.replace("sqlite:///shop.db", "memory://"))
    running = nowhere.start("dev")
    ready(running)
    assert tries(running) == []
    assert running.end() == 0


COMMANDS = """
import sys
from tidings.cli._bus import Source
from tidings.cli.dev import commands
from tidings.transports.nats import NATS
from tidings.transports.sqlite import SQLite
from shop import app
print(*commands(app, Source(eval(sys.argv[1]), sys.argv[2])), sep="\\n")
"""


@pytest.mark.parametrize(
    ("url", "origin", "option"),
    [
        ("'nats://ada:secret@h:1'", "TIDINGS_URL", '"$TIDINGS_URL"'),
        ("'nats://ada:secret@h:1'", "--url", "'<its URL>'"),
        ("'nats://ada:secret@h:1'", "shop:app", "'<its URL>'"),
        ("'redis+sentinel://h/m?sentinel_password=secret'", "TIDINGS_URL", '"$TIDINGS_URL"'),
        ("'nats://h:1'", "TIDINGS_URL", "nats://h:1"),
        ("'sqlite:///a@b.db'", "TIDINGS_URL", "sqlite:///a@b.db"),
        ("SQLite(path='/tmp/a.db')", "shop:app", "sqlite:////tmp/a.db"),
        ("NATS(password='secret', user='ada')", "shop:app", None),
    ],
)
def test_passwords_are_not_printed(nowhere: Shell, url: str, origin: str, option: str | None) -> None:
    nowhere.write("shop.py", SHOP)
    nowhere.write("commands.py", COMMANDS)
    command = [sys.executable, "commands.py", url, origin]
    done = subprocess.run(command, cwd=nowhere.folder, env=nowhere.env, capture_output=True, text=True, check=True)
    assert "secret" not in done.stdout
    tails = [line for line in done.stdout.splitlines() if line.startswith("tidings tail")]
    assert tails == ([] if option is None else [f"tidings tail '>' --url {option}"])


def test_which_app(nowhere: Shell) -> None:
    assert "tidings new NAME" in nowhere("dev", code=2).err
    nowhere.write("pkg/__init__.py", "")
    nowhere.write("pkg/shop.py", SHOP)
    nowhere.write("tests/test_shop.py", SHOP)
    nowhere.write(".venv/lib/other.py", SHOP)
    running = nowhere.start("dev")
    ready(running)
    assert running.end() == 0
    nowhere.write("scripts/desk.py", SHOP.replace("app", "desk"))
    nowhere.write("scripts/broken.py", "import tidings\napp = tidings.App('x'\n")
    which = nowhere("dev", code=2).err
    assert "say which: tidings dev pkg.shop:app or scripts/broken.py:app" in which
    results = nowhere.all([["dev", "pkg.shp"], ["dev", "scripts/nix.py"], ["dev", "nix"]])
    assert [(code, out) for code, out, *_ in results] == [(2, "")] * 3
    assert "did you mean 'pkg.shop'?" in results[0][2]
    assert "there is no file scripts/nix.py" in results[1][2]
    for wrong in ("pkg.shp", "scripts/nix.py", "nix", "nix.shop:app", ""):
        assert nowhere("dev", wrong, code=2).err == nowhere("run", wrong, code=2).err
    assert "write pkg.shop:app" in nowhere("dev", "pkg.shop.app", code=2).err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_wait(nowhere: Shell, number: signal.Signals) -> None:
    nowhere.write("slow.py", SLOW)
    running = nowhere.start("dev")
    ready(running)
    nowhere("publish", "jobs", "7", "--url", "sqlite:///slow.db")
    running.until("started 7")
    running.process.send_signal(number)
    running.until("handlers finish first")
    assert running.end(number) == 0
    assert not [line for line in running.lines if "finished" in line or "stopped" in line]


def test_ends_when_the_terminal_goes(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, also by whom we start
    running = nowhere.start("dev")
    signal.signal(signal.SIGHUP, before)
    ready(running)
    assert running.end(signal.SIGHUP) == 0
    assert "shop stopped: nothing to do\n" in running.lines


def test_ends_with_its_supervisor(nowhere: Shell) -> None:
    """Killed, that cannot say so; the app would go on without anybody to stop it."""
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("dev")
    ready(running)
    running.end(signal.SIGKILL)  # returns when nobody has its output open any more
    assert "shop stopped: nothing to do\n" in running.lines


def test_a_bus_that_cannot_be_is_refused_at_once(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    assert "no transport knows bad://" in nowhere("dev", "--url", "bad://x", code=2).err
    nowhere.env["TIDINGS_URL"] = "worse://x"
    assert "it is from TIDINGS_URL" in nowhere("dev", code=2).err


def test_a_target_elsewhere_is_watched(nowhere: Shell) -> None:
    nowhere.write("there/shop.py", SHOP)
    nowhere.write("here/x.py", "")
    nowhere.folder /= "here"
    running = nowhere.start("dev", "../there/shop.py")
    ready(running)
    nowhere.write("../there/shop.py", SHOP + "\n")
    assert running.until("changed") == "../there/shop.py changed\n"
    ready(running)
    assert running.end() == 0


def test_finds_apps_by_their_code(nowhere: Shell) -> None:
    """Not by their text, and whatever else lies about."""
    nowhere.write("told.py", '"""As in tidings:\n\napp = App("demo")\n"""\n')
    nowhere.write("shop.py", SHOP.replace("import App,", "import App as Bus,").replace("= App(", "= Bus("))
    (nowhere.folder / ".#shop.py").symlink_to("ada@host.1")
    (nowhere.folder / "gone.py").symlink_to("nowhere")
    running = nowhere.start("dev")
    ready(running)
    assert running.end() == 0
    nowhere.write("shop.py", "from tidings import App\ndef make_app(): return App('x')\napp = make_app()\n")
    refused = nowhere("dev", code=2).err
    assert "no `name = App(...)` was found" in refused
    assert "tidings dev module:app" in refused


def test_a_type_that_no_schema_describes_does_not_end_the_app(nowhere: Shell) -> None:
    held = """
from pydantic import BaseModel
class Opaque: ...
class Held(BaseModel, arbitrary_types_allowed=True):
    opaque: Opaque
@app.on("held")
async def hold(held: Held) -> None: ...
"""
    nowhere.write("shop.py", SHOP + held)
    running = nowhere.start("dev")
    ready(running)
    assert ["publish", "held", "...", "--url", "sqlite:///shop.db"] in tries(running)
    assert running.end() == 0
