"""Processes under control, and the journals they leave."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tidings.testing.faults import Journal, Processes, read

TALKS = """
import os, sys
from pathlib import Path
from tidings.testing.faults import Journal

journal = Journal(Path(sys.argv[1]), "talker")
for line in sys.stdin:
    journal.write("end", id=line.strip())
    print("did", line.strip(), flush=True)
    if line == "die\\n":
        os.write(journal.file, b'{"what": "torn')
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A module ``talks``, and where it is."""
    (tmp_path / "talks.py").write_text(TALKS)
    return {"PYTHONPATH": str(tmp_path)}


async def test_what_was_written_survives_kill_9_and_a_torn_line_does_not(tmp_path: Path, place: dict[str, str]) -> None:
    async with Processes() as processes:
        talker = await processes.start("talks", str(tmp_path / "a.jsonl"), environment=place)
        await talker.write("one")
        await talker.line("did one")
        await talker.write("die")
        assert await talker.wait() == -signal.SIGKILL
        with pytest.raises(EOFError):
            await talker.line("did more")
    assert [line.id for line in read(tmp_path)] == ["one", "die"]
    assert {line.pid for line in read(tmp_path)} == {talker.pid}


async def test_a_line_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "shouts.py").write_text("import time\nprint('x' * 300_000, 'end', flush=True)\ntime.sleep(60)\n")
    async with Processes() as processes:
        shouter = await processes.start("shouts", environment={"PYTHONPATH": str(tmp_path)})
        assert (await shouter.line("x")).endswith("x end")
        assert shouter.returncode is None


async def test_fail_points_may_be_given_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "passes.py").write_text("from tidings.transports._points import passed\npassed('here')\n")
    async with Processes() as processes:
        place = {"PYTHONPATH": str(tmp_path), "TIDINGS_FAIL_POINTS": "here=kill"}
        assert await (await processes.start("passes", environment=place)).wait() == -signal.SIGKILL


async def test_a_frozen_process_does_nothing_until_it_is_thawed(tmp_path: Path, place: dict[str, str]) -> None:
    async with Processes() as processes:
        talker = await processes.start("talks", str(tmp_path / "a.jsonl"), environment=place)
        await talker.write("one")
        await talker.line("did one")
        assert not talker.frozen
        talker.freeze()
        while not talker.frozen:  # noqa: ASYNC110  # the system tells nobody
            await asyncio.sleep(0.001)
        await talker.write("two")
        with pytest.raises(TimeoutError):
            await talker.line("did two", within=0.2)
        talker.thaw()
        await talker.line("did two")
        assert not talker.frozen


async def test_nothing_outlives_its_block(tmp_path: Path, place: dict[str, str]) -> None:
    async with Processes() as processes:
        talkers = [await processes.start("talks", str(tmp_path / f"{n}.jsonl"), environment=place) for n in range(2)]
        talkers[1].freeze()
        with pytest.raises(TimeoutError):
            await talkers[0].wait(within=0.05)
    assert [talker.returncode for talker in talkers] == [-signal.SIGKILL, -signal.SIGKILL]
    assert not talkers[0].kill()


def test_histories_are_one_in_the_order_of_time(tmp_path: Path) -> None:
    one, two = Journal(tmp_path / "1.jsonl", "one"), Journal(tmp_path / "2.jsonl", "two")
    for n in range(6):
        (one, two)[n % 2].write("end", n=n)
    one.close()
    two.close()
    assert [(line.process, line.n) for line in read(tmp_path)] == [(("one", "two")[n % 2], n) for n in range(6)]


def test_a_torn_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(b'{"what": "end"}\n{"what": \n{"what": "end"}\n')
    with pytest.raises(ValueError, match="no line of a history"):
        read(tmp_path)
