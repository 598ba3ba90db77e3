"""What is wrong is said in one shape, with the nearest name, and an exit code that says whose fault it is."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from .conftest import SCRIPT, Shell

SHAPE = re.compile(r"TDG-E\d{3}: [^\n]+\n(  (where|why|mend): +[^\n]+\n)*")

MISUSE = [
    ("publsh", 'did you mean "publish"?'),
    ("publish", "TOPIC requires an argument"),
    ("publish a 1 --pirority 3", "did you mean --priority?"),
    ("publish a --lnes", "did you mean --lines?"),
    ("publish a 1 --priority x", "into int"),
    ("publish a 1 --priority 11", "priority cannot be 11"),
    ("publish a 1 2", "too many arguments"),
    ("publish shop orders.placed 1", "an app is named with a colon: shop:app"),
    ("publish a.* 1", "is a pattern"),
    ("publish a/b 1", "'a%2Fb'"),
    ("publish _dead.x 1", "reserved"),
    ("publish a 1 --header x", "NAME=VALUE"),
    ("publish a 1 --header tdgx=1", "reserved"),
    ("publish a 1 --delay 5x", "delay cannot be '5x'"),
    ("publish a 1 --delay 5s --expires 1s", "before it is due"),
    ("publish a --file nix", "--file nix cannot be read"),
    ("publish a --file .", "is a folder"),
    ("publish a 1 --file nix", "exclude each other"),
    ("publish a 1 --lines", "not DATA"),
    ("publish nix:app a 1", "no module 'nix'"),
    ("publish a:b", "'a:b' is no valid topic"),
    ("request a.> 1", "is a pattern"),
    ("request a 1 --timeout soon", "--timeout cannot be 'soon'"),
    ("request a 1 --tmeout 1s", "did you mean --timeout?"),
    ("tail #", "TDG-E001"),
    ("tail a --since xx", "--since cannot be 'xx'"),
    ("tail a --limit 0", "--limit cannot be 0"),
    ("tail a --limt 3", "did you mean --limit?"),
    ("groups rname a b", "did you mean 'rename'?"),
    ("groups rename a", "NEW requires an argument"),
    ("groups rename a b/c", "TDG-E001"),
    ("groups a..b", "TDG-E001"),
    ("dead lss", 'did you mean "ls"?'),
    ("dead ls a/b", "TDG-E001"),
    ("dead show", "LETTER requires an argument"),
    ("dead replay", "which dead letters?"),
    ("run", "APP requires an argument"),
    ("run nix --ulr x", "did you mean --url?"),
    ("demo --for 1x", "--for cannot be '1x'"),
    ("demo --fro 1s", "did you mean --for?"),
]

BUSES = [
    ("foo", 2, "TDG-E006", "it is from --url"),
    ("sqlit:///x.db", 2, "TDG-E006", "did you mean 'sqlite'?"),
    ("rabbitmq://localhost", 2, "TDG-E006", "did you mean 'amqp'?"),
    ("sqlite:///x.db?leas=1s", 2, "TDG-E006", "did you mean 'lease'?"),
    ("memory://", 2, "TDG-E005", "lives and dies with the process"),
    ("sqlite:///shp.db", 3, "TDG-E021", "did you mean 'shop.db'?"),
    ("sqlite:///nix/shop.db", 3, "TDG-E021", "there is no folder"),
    ("sqlite:///junk.db", 3, "TDG-E023", "junk.db"),
]


VERBS = ["groups", "dead ls", "tail a", "request a 1"]


def test_misuse(shell: Shell) -> None:
    wrong = []
    for (line, said), result in zip(MISUSE, shell.all([line.split() for line, _ in MISUSE]), strict=True):
        code, out, err, files = result
        shaped = SHAPE.fullmatch(err) and said in err and "where:" not in err  # no line of the user's is to blame
        if (code, out, files) != (2, "", ["shop.py"]) or not shaped:
            wrong.append((line, said, result))
    assert wrong == []


def test_misuse_of_the_script_itself(shell: Shell) -> None:
    refused = shell("publish", "a/b", "1", code=2)
    assert SHAPE.fullmatch(refused.err), refused
    assert (refused.out, "where:" in refused.err) == ("", False)


def test_bad_bus(shell: Shell) -> None:
    shell.write("junk.db", "this is no database; " * 100)
    shell.write("shop.db", "")
    wrong = []
    cases = [(verb, *bus) for verb in VERBS for bus in BUSES]
    results = shell.all([[*verb.split(), "--url", url] for verb, url, *_ in cases])
    for case, result in zip(cases, results, strict=True):
        code, out, err, files = result
        expected = (case[2], "", ["junk.db", "shop.db", "shop.py"])
        if (code, out, files) != expected or not err.startswith(case[3]) or case[4] not in err:
            wrong.append((case, result))
    assert wrong == []


def test_an_empty_url(shell: Shell) -> None:
    assert "TDG-E002: --url is empty" in shell("groups", "--url", "", code=2).err


@pytest.mark.parametrize("line", ["groups", "groups --url sqlite:///x.db", "run shop", "peek a"])
def test_a_folder_that_was_deleted(nowhere: Shell, line: str) -> None:
    gone = nowhere.folder / "gone"
    gone.mkdir()
    deleted = ["sh", "-c", f"rmdir {gone}; exec {SCRIPT} {line}"]
    done = subprocess.run(deleted, cwd=gone, env=nowhere.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "TDG-E002: the working directory was deleted\n  mend:  cd to one that exists\n"


def test_no_bus(nowhere: Shell) -> None:
    refused = nowhere("groups", code=2).err
    assert all(name in refused for name in ("--url", "TIDINGS_URL", "[tool.tidings] url"))


def test_errors_as_json(shell: Shell) -> None:
    told = json.loads(shell("groups", "--json", code=3).err)["error"]
    assert told["code"] == "TDG-E021"
    assert told["what"] == f"there is no bus file {shell.folder}/shop.db"
    assert json.loads(shell("publish", "a", "1", "--priorty", "3", "--json", code=2).err)["error"]["code"] == "TDG-E002"


def test_errors_are_red_on_a_terminal_only(shell: Shell) -> None:
    assert "\x1b[31mTDG-E021\x1b[0m" in shell.on_terminal("groups").out
    shell.env["NO_COLOR"] = "1"
    assert "\x1b" not in shell.on_terminal("groups").out


@pytest.mark.parametrize(
    "content",
    ["x[", "tool = 3\n", "[tool]\ntidings = 3\n", "[tool.tidings]\nurl = 3\n", '[tool.tidings]\nurl = "sqlit:///x"\n'],
    ids=["toml", "tool", "table", "type", "url"],
)
def test_bad_project(nowhere: Shell, content: str) -> None:
    project = nowhere.write("pyproject.toml", content)
    assert str(project) in nowhere("groups", code=2).err


def test_a_project_is_read_as_utf8(nowhere: Shell) -> None:
    nowhere.env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (nowhere.folder / "pyproject.toml").write_text('[tool.tidings]\nurl = "sqlite:///b.db"  # für\n', encoding="utf-8")
    assert "b.db" in nowhere("groups", code=3).err


def test_a_projects_file_is_the_same_from_every_folder(nowhere: Shell) -> None:
    nowhere.write("pyproject.toml", '[tool.tidings]\nurl = "sqlite:///bus.db?lease=5s"\n')
    inner = nowhere.folder / "a" / "b"
    inner.mkdir(parents=True)
    nowhere("publish", "a", "1", folder=inner)
    assert (nowhere.folder / "bus.db").exists()
    assert nowhere("groups", "--json").json == []


def test_global_options_before_the_verb(nowhere: Shell) -> None:
    told = nowhere("--json", "--url", "sqlite:///a.db", "publish", "a", "--", "-x").json
    assert told["url"].endswith("/a.db")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(nowhere: Shell, flag: str) -> None:
    nowhere.env["PYTHONPROFILEIMPORTTIME"] = "1"
    told = nowhere(flag)
    assert re.fullmatch(r"tidings \d+\.\d+\.\d+\n", told.out)
    assert not re.search(r"\b(cyclopts|rich|apsw)\b", told.err)


@pytest.mark.parametrize("words", [[], ["--help"], ["publish", "-h"], ["groups", "-h"], ["dead", "replay", "-h"]])
def test_help(nowhere: Shell, words: list[str]) -> None:
    told = nowhere(*words)
    assert told.out.startswith("Usage: tidings")
    assert told.err == ""
