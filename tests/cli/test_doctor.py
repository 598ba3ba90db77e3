"""``tidings doctor``: what it finds on this machine and at a bus, what it leaves alone, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.servers import fresh, server

from tidings.cli._findings import OTHERS
from tidings.transports.sqlite import file_system

from .conftest import SCRIPT, Shell

ROOT = Path(__file__).parents[2]
AREAS = ["machine", "python", "extras", "bus", "clock", "limits"]


def findings(document: Any) -> dict[str, dict[str, str]]:
    """What was found, by area and name."""
    return {f"{one['area']} {one['name']}": one for one in document["findings"]}


def anywhere(shell: Shell, *words: str) -> str:
    """What it prints, also where the machine of the tests is not well, as its disk may be full."""
    ((code, out, err, _),) = shell.all([["doctor", *words]])
    assert code in (0, 1)
    assert err == ""
    return out


def test_without_a_bus(nowhere: Shell) -> None:
    told = json.loads(anywhere(nowhere, "--json"))
    assert list(dict.fromkeys(one["area"] for one in told["findings"])) == AREAS
    assert told["url"] == ""
    assert {one["area"] for one in told["findings"] if one["state"] == "wrong"} <= {"machine"}
    found = findings(told)
    assert found["bus url"]["found"].startswith("none is configured: --url, or TIDINGS_URL")
    assert found["python sqlite"]["found"].endswith(": safe")
    assert found["python version"]["found"].startswith("CPython 3.")
    assert {name for name in found if name.startswith("extras")} >= {"extras postgres", "extras demo", "extras kafka"}
    assert not {f"extras {name}" for name in OTHERS} & found.keys()
    assert list(nowhere.folder.iterdir()) == []


def test_what_is_not_offered_is_what_nothing_in_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    points = " ".join(point for group in project["entry-points"].values() for point in group.values())
    needed = set(re.findall(r"\[(\w+)\]", points)) | {"pydantic"}  # which one's own models need
    for path in (ROOT / "src").rglob("*.py"):
        needed.update(re.findall(r"tidings\[(\w+)\]", path.read_text("utf-8")))
    assert set(project["optional-dependencies"]) - needed == set(OTHERS)


@pytest.mark.usefixtures("known")
def test_a_file(shell: Shell) -> None:
    before = shell("topics", "--json").json
    found = findings(shell("doctor", "--json").json)
    assert {name for name, one in found.items() if one["area"] == "bus" and one["state"] != "ok"} == set()
    assert found["bus url"]["found"] == f"sqlite:///{shell.folder}/shop.db, from TIDINGS_URL"
    assert found["bus round trip"]["found"].endswith(" ms")
    assert found["limits payload"]["found"] == "16 MiB on this bus"
    assert found["limits retention"]["found"].startswith("7d")
    assert shell("topics", "--json").json == before


@pytest.mark.usefixtures("known")
def test_a_group_that_nobody_runs(shell: Shell) -> None:
    shell("publish", "orders.placed", '{"id": "A1", "total": 1}')
    one = findings(shell("doctor", "--json").json)["bus groups"]
    assert one["state"] == "warning"
    assert "nobody is there for 1 messages of shop.bill" in one["found"]
    assert "start the app" in one["mend"]


def test_a_file_that_is_not_there_is_not_made(shell: Shell) -> None:
    one = findings(shell("doctor", "--json").json)["bus file"]
    assert (one["state"], one["found"]) == ("warning", f"there is no {shell.folder}/shop.db yet")
    assert not (shell.folder / "shop.db").exists()


def test_the_file_may_grow_beyond_the_disk(nowhere: Shell) -> None:
    url = "sqlite:///shop.db?max_size=1000TiB"
    nowhere("publish", "a", "1", "--url", url)
    one = findings(nowhere("doctor", "--url", url, "--json").json)["bus disk"]
    assert one["state"] == "warning"
    assert "?max_size=" in one["mend"]


def test_a_file_that_everybody_may_write(nowhere: Shell) -> None:
    nowhere("publish", "a", "1", "--url", "sqlite:///shop.db")
    (nowhere.folder / "shop.db").chmod(0o666)
    one = findings(nowhere("doctor", "--url", "sqlite:///shop.db", "--json").json)["bus rights"]
    assert (one["state"], one["mend"]) == ("warning", f"chmod o-w {nowhere.folder}/shop.db*")


@pytest.mark.skipif(file_system(Path("/dev/shm")) != "tmpfs", reason="/dev/shm is no tmpfs here")
def test_a_file_that_a_restart_ends(nowhere: Shell) -> None:
    one = findings(nowhere("doctor", "--url", "sqlite:////dev/shm/tidings-doctor.db", "--json").json)["bus file system"]
    assert (one["state"], one["found"]) == ("warning", "tmpfs: gone after a restart")


WRONG = [
    ("sqlit:///shop.db", "url", "TDG-E006: no transport knows sqlit://", "did you mean 'sqlite'?"),
    ("sqlite:///data/shop.db", "file", "there is no folder", "mkdir -p "),
    ("sqlite:///junk.db", "reachable", "TDG-E023: ", "restore it from a backup"),
    ("sqlite:///" + "x" * 300, "file", "TDG-E000: OSError: ", "TIDINGS_DEBUG=1"),
    ("nats://127.0.0.1:1", "reachable", "TDG-E021: ", "start it"),
    ("nats://[::1", "url", "TDG-E006: ", "[::1]"),
    ("nats+tls://127.0.0.1:1?ca=/nix.pem", "reachable", "TDG-E021: TLS for NATS cannot be set up", "ca=/nix.pem"),
    ("", "url", "TDG-E002: --url is empty", "leave it out"),
]


@pytest.mark.parametrize(("url", "name", "said", "mend"), WRONG, ids=[url[:40] or "empty" for url, *_ in WRONG])
def test_a_bus_that_is_wrong(nowhere: Shell, url: str, name: str, said: str, mend: str) -> None:
    nowhere.write("junk.db", "this is no database; " * 100)
    told = nowhere("doctor", "--url", url, "--json", code=3).json
    one = findings(told)[f"bus {name}"]
    assert (told["state"], one["state"]) == ("wrong", "wrong")
    assert one["found"].startswith(said)
    assert mend in one["mend"]


@pytest.mark.parametrize("url", ["redis://ada:[x@h", "redis+sentinel://127.0.0.1:1/m?sentinel_password=[x"])
def test_no_secret_is_printed(nowhere: Shell, url: str) -> None:
    assert "[x" not in nowhere("doctor", "--url", url, code=3).out


AS_ANOTHER = """
import contextlib, io, os, sys
from tidings.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[1:])  # imports what another user may not read
if os.geteuid() == 0:  # who may enter anything
    os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("inner", ["", "/data"])
@pytest.mark.parametrize("verb", ["doctor", "groups"])
def test_a_folder_that_this_user_may_not_enter(nowhere: Shell, inner: str, verb: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.makedirs(f"{name}/closed{inner}")
        os.chmod(name, 0o755)
        os.chmod(f"{name}/closed", 0)
        words = [sys.executable, "-c", AS_ANOTHER, verb, "--json", "--url", f"sqlite:///{name}/closed{inner}/shop.db"]
        done = subprocess.run(words, cwd="/", env=nowhere.env, capture_output=True, text=True, check=False)
        os.chmod(f"{name}/closed", 0o755)
    assert done.returncode == 3
    if verb == "groups":
        told = [line for line in done.stderr.splitlines() if line.startswith("{")]  # coverage may warn, too
        assert json.loads(told[-1])["error"]["code"] == "TDG-E021"
    else:
        one = findings(json.loads(done.stdout))["bus rights"]
        assert (one["state"], one["found"]) == ("wrong", f"this user may not enter {name}/closed")


def test_a_folder_that_was_deleted(nowhere: Shell) -> None:
    gone = nowhere.folder / "gone"
    gone.mkdir()
    deleted = ["sh", "-c", f"rmdir {gone}; exec {SCRIPT} doctor --json"]
    done = subprocess.run(deleted, cwd=gone, env=nowhere.env, capture_output=True, text=True, check=False)
    found = findings(json.loads(done.stdout))
    assert done.returncode == 3
    assert {found[name]["mend"] for name in ("machine folder", "bus url")} == {"cd to one that exists"}


@pytest.mark.slow
def test_what_this_user_may_not_ask(nowhere: Shell) -> None:
    with fresh("redis") as mine:
        admin: Any = Redis.from_url(mine.url)
        for name, rule in (("ada", "-time"), ("bob", "-hgetall")):
            admin.execute_command("ACL", "SETUSER", name, "on", ">pw", "~*", "&*", "+@all", rule)
        admin.close()
        ada, bob = (mine.url.replace("://", f"://{name}:pw@") for name in ("ada", "bob"))
        clock = findings(nowhere("doctor", "--url", ada, "--json").json)["clock bus"]
        found = findings(nowhere("doctor", "--url", bob, "--json", code=3).json)
    assert clock["state"] == "warning"
    assert clock["found"].startswith("it may not be asked: ")
    assert found["bus reachable"]["state"] == "ok"
    assert found["bus answers"]["state"] == "wrong"


def test_a_bus_whose_client_is_missing(nowhere: Shell) -> None:
    program = "import sys; sys.modules['asyncpg'] = None; from tidings.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "doctor", "--url", "postgresql://localhost/x", "--json"]
    done = subprocess.run(words, cwd=nowhere.folder, env=nowhere.env, capture_output=True, text=True, check=False)
    one = findings(json.loads(done.stdout))["bus url"]
    assert (done.returncode, one["state"], one["mend"]) == (3, "wrong", "pip install 'tidings[postgres]'")


def test_a_project_that_cannot_be_read(nowhere: Shell) -> None:
    nowhere.write("pyproject.toml", "x[")
    assert "TDG-E002" in findings(nowhere("doctor", "--json", code=3).json)["bus url"]["found"]


def test_memory(nowhere: Shell) -> None:
    one = findings(nowhere("doctor", "--url", "memory://", "--json").json)["bus reachable"]
    assert (one["state"], one["found"]) == ("warning", "only within the app's own process")


def test_limits_of_the_process(nowhere: Shell) -> None:
    limited = ["sh", "-c", f"ulimit -n 200; ulimit -f 1000000; exec {SCRIPT} doctor --json"]
    done = subprocess.run(limited, cwd=nowhere.folder, env=nowhere.env, capture_output=True, text=True, check=False)
    found = findings(json.loads(done.stdout))
    assert found["limits open files"]["found"] == "200"
    assert found["limits open files"]["mend"].startswith("ulimit -n 1024")
    assert found["limits file size"]["state"] == "warning"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["postgres", "nats", "rabbitmq", "redis", "kafka"])
def test_a_server(nowhere: Shell, engine: str) -> None:
    found = findings(nowhere("doctor", "--url", server(engine).url, "--json").json)
    assert found["bus reachable"]["state"] == "ok"
    assert found["bus round trip"]["found"].endswith(" ms")
    told = found["clock bus"]["found"]
    assert told.endswith(" ms apart") if engine in ("postgres", "redis") else told.startswith("it has no clock")


def test_on_a_terminal(nowhere: Shell) -> None:
    told = nowhere.on_terminal("doctor", "--url", "sqlite:///data/shop.db")
    lines = told.out.splitlines()
    assert told.code == 3
    assert [line for line in lines if line.startswith("\x1b[1m")] == [f"\x1b[1m{area}\x1b[0m" for area in AREAS]
    wrong = next(number for number, line in enumerate(lines) if "\x1b[31mwrong" in line)
    assert f"mkdir -p {nowhere.folder}/data" in lines[wrong + 1]
    assert "1 wrong" in lines[-1]


def test_in_a_pipe(nowhere: Shell) -> None:
    head, *rows = anywhere(nowhere).splitlines()
    assert head.split() == ["STATE", "AREA", "CHECKED", "FOUND", "MEND"]
    assert {tuple(row.split()[:2]) for row in rows} <= {
        *((state, area) for state in ("ok", "warning") for area in AREAS),
        ("wrong", "machine"),
    }
