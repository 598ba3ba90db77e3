"""``tidings completion``: what a shell completes, asked of a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import Shell

ASK = """
source /dev/stdin <<< "$1"
COMP_WORDS=(tidings {words}) COMP_CWORD={at} COMP_LINE="tidings {words}" COMP_POINT=200
"$(complete -p tidings | sed -E 's/.*-F ([^ ]+).*/\\1/')" tidings
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(script: str, words: str) -> list[str]:
    """What bash offers after these words."""
    asked = ASK.format(words=words, at=len(words.split()))
    done = subprocess.run(["bash", "-c", asked, "bash", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_verbs_and_options(nowhere: Shell) -> None:
    script = nowhere("completion", "bash").out
    assert completed(script, "top") == ["topics", "topology"]
    assert completed(script, "dead pu") == ["purge"]
    assert "--dry-run" in completed(script, "backup --d")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_one(nowhere: Shell, shell: str) -> None:
    nowhere.env["SHELL"] = f"/usr/bin/{shell}"
    told = nowhere("completion", "--json").json
    assert told["shell"] == shell
    assert "capabilities" in told["script"]


def test_install(nowhere: Shell) -> None:
    nowhere.env["HOME"] = str(nowhere.folder)
    assert nowhere("completion", "bash", "--install", "--dry-run").out == "would install the completion of bash\n"
    assert list(nowhere.folder.iterdir()) == []
    where = nowhere("completion", "bash", "--install", "--json").json["installed"]
    assert where.startswith(str(nowhere.folder))
    assert completed(Path(where).read_text(), "doc") == ["doctor"]


def test_unknown(nowhere: Shell) -> None:
    nowhere.env["SHELL"] = "/bin/tcsh"
    assert "SHELL names tcsh" in nowhere("completion", code=2).err
    nowhere("completion", "tcsh", code=2)
