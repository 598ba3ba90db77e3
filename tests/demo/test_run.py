"""The demo as it is run: a process, its lines, its file. What is waited for is a line, never a time."""

from __future__ import annotations

import asyncio
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tidings.demo
from tidings import App
from tidings.demo.app import Window, windows
from tidings.demo.sensors import HOST, Reading
from tidings.kernel.errors import MissingExtra
from tidings.kernel.transport import Inspectable

PATIENCE = 30.0  # seconds for any one line
WORK = 300  # messages of some milliseconds each


class Demo:
    """One run."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "tidings.demo", "--plain", *arguments]
        with (folder / "errors.txt").open("a") as errors:
            self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.errors = folder / "errors.txt"
        self.lines: list[str] = []
        self.queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self.queue.put(line.rstrip("\n"))
        self.queue.put(None)

    def line(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self.queue.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                break
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail("\n".join([f"no line {pattern!r}:", *self.lines, self.errors.read_text()]))

    def end(self) -> dict[str, dict[str, str]]:
        """The summary, when it has exited well: of each topic, each group, and of all under ``""``."""
        self.line("^summary ")
        assert self.process.wait(PATIENCE) == 0, self.errors.read_text()
        told = {}
        for line in self.lines:
            if line.startswith(("topic ", "group ", "summary ")):
                numbers = dict(part.split("=") for part in line.split()[1:])
                told[numbers.pop("name", "")] = numbers
        return told


@pytest.fixture
def runs() -> Iterator[list[Demo]]:
    """Whatever is in it is killed in the end."""
    found: list[Demo] = []
    yield found
    for demo in found:
        demo.process.kill()
        demo.process.wait()


async def stored(url: str) -> Counter[str]:
    """How many messages the file has, by the first token of their topic."""
    counts: Counter[str] = Counter()
    async with App("probe", url).connect() as probe:
        bus = probe.bus()
        assert isinstance(bus, Inspectable)
        for topic in await bus.topics():
            counts[topic.name.partition(".")[0]] += topic.messages
    return counts


async def test_a_few_seconds(tmp_path: Path, runs: list[Demo]) -> None:
    url = f"sqlite:///{tmp_path}/demo.db"
    runs.append(demo := Demo(tmp_path, "--for", "4s", "--url", url))
    assert demo.line(r"^found recovered=(\d+) waiting=(\d+)").groups() == ("0", "0")
    demo.line("^first handled")
    async with App("probe", url).connect() as probe:
        odd = Window(Reading(HOST, "core-9", "load", "%", 95.0, time.time()), [5.0, 6.0] * 10 + [95.0])
        await probe.publish(windows.bind(host=HOST, device="core-9", quantity="load")(odd, key="core-9.load"))
        answer = await probe.request("sensors.summary", {"device": "memory"}, dict[str, Any])
    assert answer["host"] == HOST
    demo.line("^alert severity=critical series=core-9.load")
    demo.line(r"^dead letter group=demo.translate reason=rejected detail=.*no load average")
    told = demo.end()

    numbers = told[""]
    assert (numbers["left"], numbers["recovered"]) == ("0", "0"), demo.lines
    assert int(numbers["dead"]) == int(told["demo.translate"]["dead"]) >= 1
    assert int(numbers["alerts"]) >= 1
    assert [name for name, group in told.items() if group.get("handled") == "0"] == []
    assert [name for name, group in told.items() if group.get("failed", "0") != "0"] == []
    published = {name: int(topic["published"]) for name, topic in told.items() if "published" in topic}
    handled = {name: int(group["handled"]) for name, group in told.items() if "handled" in group}
    assert published["sensors"] == handled["demo.window"] == handled["demo.minutes"] == published["windows"]
    assert handled["demo.score"] == published["windows"] + 1  # ours
    assert published["legacy"] == handled["demo.translate"] + int(numbers["dead"])
    assert published["anomalies"] == handled["demo.route"] == published["alerts"]


async def kill_at_work(demo: Demo, url: str) -> int:
    """Give it some seconds of work, and kill it with some of that in hand: it stands still while that is looked at.

    Whoever is first notices a death: returns how many messages were recovered here.
    """
    reading = Reading(HOST, "core-9", "load", "%", 5.0, time.time())
    calm = [5.0, 6.0, 7.0, 6.0] * 24
    async with asyncio.timeout(PATIENCE), App("probe", url).connect() as probe:
        bus = probe.bus()
        assert isinstance(bus, Inspectable)
        topic = windows.bind(host=HOST, device="core-9", quantity="load")
        await probe.publish_many([topic(Window(reading, calm)) for _ in range(WORK)])
        while not await in_hand(bus, demo.process.pid):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        demo.process.kill()
        demo.process.wait()
    return probe.events["recovered"]


async def in_hand(bus: Inspectable, pid: int) -> bool:
    """Whether it has something in hand, and still has when it stands still; then it stays so."""
    if not sum(group.in_flight for group in await bus.groups("demo.score")):
        return False
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)  # noqa: ASYNC222  # at once
    if sum(group.in_flight for group in await bus.groups("demo.score")):
        return True
    os.kill(pid, signal.SIGCONT)
    return False


async def test_killed_and_started_again(tmp_path: Path, runs: list[Demo]) -> None:
    url = f"sqlite:///{tmp_path}/demo.db"
    runs.append(first := Demo(tmp_path, "--url", url))
    first.line("^t=2 ")
    here = await kill_at_work(first, url)

    runs.append(second := Demo(tmp_path, "--for", "2s", "--url", url))
    recovered, waiting = map(int, second.line(r"^found recovered=(\d+) waiting=(\d+)").groups())
    assert 0 < here + recovered <= waiting <= WORK + 200
    assert float(second.line(r"^first handled after seconds=([\d.]+)")[1]) < 2.0  # a lease is 30
    told = second.end()
    published, left = int(told["sensors"]["published"]), told[""]["left"]
    while left != "0":  # a slow machine does not do it all in the time that a run was given
        runs.append(another := Demo(tmp_path, "--for", "1s", "--url", url))
        left = another.end()[""]["left"]
    found = await stored(url)
    assert found["sensors"] > published > 0  # of both lives
    assert found["windows"] == found["sensors"] + WORK  # each handled, and its output stored exactly once


def test_sigterm_is_a_clean_end(tmp_path: Path, runs: list[Demo]) -> None:
    runs.append(demo := Demo(tmp_path))
    demo.line(f"^demo pid={demo.process.pid} bus=sqlite:///{re.escape(str(tmp_path))}/tidings-demo.db")
    demo.line("^first handled")
    demo.process.send_signal(signal.SIGTERM)
    assert float(demo.end()[""]["seconds"]) < 10.0


def test_whoever_reads_may_stop_reading(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tidings.demo --for 1500ms --url memory:// | head -1"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("demo pid=")


def test_a_wrong_url_is_an_error_of_one_shape(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tidings.demo", "--url", "sqlit:///x.db"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("TDG-E006: no transport knows sqlit://")
    assert "Traceback" not in ran.stderr


def test_without_psutil_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tidings\[demo\]'"):
        tidings.demo.main(None, 1.0, True)
