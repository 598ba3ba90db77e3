"""``tidings new``: what it makes runs, is tested, passes its own checks, and is what its deployment files run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SCRIPT, Shell

MADE = [
    ".dockerignore",
    ".gitignore",
    "README.md",
    "deploy/Dockerfile",
    "deploy/parcel-desk.service",
    "parcel_desk/__init__.py",
    "parcel_desk/app.py",
    "pyproject.toml",
    "tests/test_app.py",
]

CHECKS = [
    ["pytest", "-q", "-p", "no:cacheprovider"],
    ["mypy", "--cache-dir=/dev/null"],
    ["ruff", "check", "--no-cache"],
    ["ruff", "format", "--check", "--no-cache"],
]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def project(nowhere: Shell) -> Shell:
    """The shell, in a project that was just made."""
    nowhere("new", "parcel-desk")
    nowhere.folder = nowhere.folder / "parcel-desk"
    return nowhere


def test_lists_what_it_makes(nowhere: Shell) -> None:
    planned = nowhere("new", "parcel-desk", "--dry-run", "--json").json
    assert (planned["name"], planned["dry_run"], sorted(planned["files"])) == ("parcel-desk", True, MADE)
    assert files(nowhere.folder) == []
    made = nowhere("new", "parcel-desk")
    assert made.out.startswith("made parcel-desk\n")
    assert "next: cd parcel-desk && tidings dev" in made.err
    assert files(nowhere.folder / "parcel-desk") == MADE


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["parcel-desk", "a", "zebra-crossing-counter-office2"])
def test_passes_its_own_checks(nowhere: Shell, name: str) -> None:
    nowhere("new", name)
    for words in CHECKS:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, cwd=nowhere.folder / name, env=nowhere.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)


def test_runs_as_its_readme_says(project: Shell) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (project.folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    running = project.start("dev")
    running.until("Ctrl-C ends it")
    tried = []
    for program, *words in commands:
        if program == "tidings" and words[0] not in ("dev", "tail"):
            redirected = words[: words.index(">")] if ">" in words else words
            tried.append((words[0], project(*redirected).out))
            if words[:2] == ["publish", "orders.placed"]:
                running.until("A7 is paid: 50.00" if "A7" in words[2] else "A8 costs nothing")
    assert [verb for verb, _ in tried] == ["publish", "publish", "dead", "request", "groups", "asyncapi", "topology"]
    said = dict(tried)
    assert "parcel-desk.bill" in said["dead"]
    assert said["request"] == "12.0\n"
    assert (project.folder / "topology.svg").read_text().startswith("<svg")
    assert running.end() == 0


def test_is_what_its_deployment_runs(project: Shell) -> None:
    unit = re.search(r"^ExecStart=\S+/tidings (.+)$", (project.folder / "deploy/parcel-desk.service").read_text(), re.M)
    image = re.search(r'^CMD \["tidings", (.+)\]$', (project.folder / "deploy/Dockerfile").read_text(), re.M)
    assert unit
    assert image
    words = unit[1].split()
    assert [word.strip('"') for word in image[1].split(", ")] == words
    bus = project.folder / "elsewhere.db"
    project.env["TIDINGS_URL"] = f"sqlite:///{bus}"
    running = project.start(*words)
    assert str(bus) in running.until("listens on")
    running.until("orders.price")
    assert running.end() == 0


def test_secrets_have_a_place(project: Shell) -> None:
    """In a file that the unit reads, and that is neither committed nor put into an image."""
    unit = (project.folder / "deploy/parcel-desk.service").read_text()
    assert "\nUMask=0077\n" in unit
    assert "\nStateDirectoryMode=0700\n" in unit
    assert unit.index("\nEnvironment=TIDINGS_URL=") < unit.index("\nEnvironmentFile=-/etc/parcel-desk.env\n")
    readme = (project.folder / "README.md").read_text()
    assert "--mode 600 /dev/null /etc/parcel-desk.env" in readme
    assert "--env-file /etc/parcel-desk.env" in readme
    project.write(".env", "TIDINGS_URL=nats://ada:secret@host")
    subprocess.run(["git", "init", "-q"], cwd=project.folder, check=True)
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=project.folder, capture_output=True, text=True, check=True
    )
    assert "pyproject.toml" in status.stdout
    assert ".env" not in status.stdout
    assert ".env" in (project.folder / ".dockerignore").read_text().splitlines()


def test_an_empty_folder_will_do(nowhere: Shell) -> None:
    (nowhere.folder / "desk/.git").mkdir(parents=True)
    nowhere("new", ".", folder=nowhere.folder / "desk")
    assert (nowhere.folder / "desk/desk/app.py").is_file()


REFUSED = [
    ("full", "there is kept.txt"),
    ("file", "there is a file"),
    ("Café", "tidings new cafe"),
    ("OrderDesk", "tidings new order-desk"),
    ("order_desk", "tidings new order-desk"),
    ("9lives", "tidings new app-9lives"),
    ("über/Straße", "tidings new 'über/strasse'"),
    ("sub/Ünï", "tidings new sub/uni"),
    ("dist", "tidings new dist-app"),
    ("tests", "tidings new tests-app"),
    ("root", "tidings new root-app"),
    ("--", "NAME requires an argument"),
    ("$x", "tidings new x"),
    ("漢字", "tidings new app"),
    ("asyncio", "tidings new asyncio-app"),
    ("tidings", "tidings new tidings-app"),
    ("import", "tidings new import-app"),
    ("x" * 31, "tidings new " + "x" * 30),
]


def test_refuses(nowhere: Shell) -> None:
    nowhere.write("full/kept.txt", "")
    nowhere.write("file", "")
    results = nowhere.all([["new", name] for name, _ in REFUSED])
    wrong = [
        (name, said, result)
        for (name, said), result in zip(REFUSED, results, strict=True)
        if result[:2] != (2, "") or said not in result[2] or result[3] != ["file", "full"]
    ]
    assert wrong == []


def test_the_script_is_the_installed_one() -> None:
    """The templates are found from outside the source tree too."""
    done = subprocess.run([SCRIPT, "new", "x", "--dry-run"], cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "would make x")
