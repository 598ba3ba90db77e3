"""Pages with commands, played as a newcomer would: an empty folder, a new environment, the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.house.terminals import blocks, play
from tests.servers import Missing, unavailable
from tests.servers.install import install
from tests.servers.mosquitto import Mosquitto

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```console" in page.read_text()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    text = page.read_text()
    if "mosquitto_pub" in text:
        try:
            install([Mosquitto])
        except Missing as missing:
            unavailable(str(missing))
    play(text, tmp_path, environment)


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin"}
    play(
        '```text title="a/b.txt"\nhello\n```\n\n```console\n$ cat a/b.txt; echo 12:30:01 x\nhello\n…:…:… x\n```\n',
        tmp_path,
        env,
    )
    with pytest.raises(AssertionError, match="line 1: 'no' did not come, but:\nyes"):
        play("```console\n$ echo yes; exit\nno\n```\n", tmp_path, env)
    with pytest.raises(AssertionError, match=r"line 3: '\$ false' ended with exit code 1"):
        play("\n\n```console\n$ false\n```\n", tmp_path, env)


def test_terminals_are_apart_and_can_be_interrupted(tmp_path: Path) -> None:
    page = """
```console title="one"
$ sh -c 'trap "exit 130" INT; echo on; while :; do sleep 1; done'
on
```
```console title="two"
$ echo here
here
```
```console title="one"
^C
$ echo still
still
```
"""
    play(page, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert [block.title for block in blocks(page)] == ["one", "two", "one"]
