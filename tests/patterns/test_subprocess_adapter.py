"""EIP Channel Adapter for programs: lines become messages, messages become lines, and no program outlives the app."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.errors import InvalidOption
from tidings.patterns import feed_process, run_process

lines = Topic("lines.written", str)
raw = Topic("lines.raw", bytes)
numbers = Topic("numbers.written", int)


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def running(to: Topic[Any], code: str, bus: str = "memory://", **options: Any) -> tuple[App, list[Message[Any]]]:
    app, came = App("host", bus), list[Message[Any]]()
    run_process(app, python(code), to, **{"restart": "50ms", **options})

    @app.on(to, concurrency=1)
    async def see(message: Message[Any]) -> None:
        came.append(message)

    return app, came


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


FOREVER = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: time.sleep(1)"


async def test_each_line_is_a_message() -> None:
    code = "import sys, time\nsys.stdout.buffer.write('ä\\nb\\r\\n\\nlast'.encode())\nsys.stdout.flush()"
    for to, wanted in ((raw, ["ä".encode(), b"b", b"", b"last"]), (lines, ["ä", "b", "", "last"])):
        app, came = running(to, code)
        async with app:
            await until(lambda: len(came) >= 4, "all came")  # noqa: B023
        assert [message.data for message in came[:4]] == wanted


async def test_it_is_started_again_and_ends_with_the_app() -> None:
    app, came = running(lines, "import os\nprint(os.getpid())")
    async with app:
        await until(lambda: len(came) >= 3, "it was started again")
    assert len({message.data for message in came}) == len(came)
    app, came = running(numbers, FOREVER, read=int)
    async with app:
        await until(lambda: came, "it runs")
        assert not gone(came[0].data)
    assert gone(came[0].data)


async def test_one_that_does_not_listen_is_killed() -> None:
    stubborn = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}"
    app, came = running(numbers, stubborn, read=int)
    async with app:
        await until(lambda: came, "it runs")
    assert gone(came[0].data)


async def test_what_is_no_message_is_told_and_the_next_come(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        app, came = running(numbers, "print('one\\n2\\n3')", read=int)
        async with app:
            await until(lambda: len(came) >= 2, "the others came")
    assert [message.data for message in came[:2]] == [2, 3]
    assert "wrote b'one', which is no message" in caplog.text


async def test_a_program_that_is_not_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = App("host", "memory://")
    run_process(app, ["no-such-program"], lines, restart="10ms")
    async with app:
        await until(lambda: caplog.text.count("no-such-program cannot be started") > 1, "it is told, and tried again")


async def test_while_the_bus_is_full_the_program_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bus = f"sqlite:///{tmp_path}/bus.db?max_size=256KiB&segment_rows=20&retain=0s"
    code = "import time\nfor n in range(1200): print(n, 'x' * 500)\ntime.sleep(1000)"
    app, came = running(lines, code, bus)
    async with app:
        app.pause("host.see")
        await until(lambda: "lines of a program are published later" in caplog.text, "the bus is full")
        app.pause("host.see", False)
        await until(lambda: len(came) >= 1200, "all came")
    assert [int(message.data.partition(" ")[0]) for message in came] == list(range(1200))


async def test_messages_are_lines_of_one_that_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import sys\nfor line in sys.stdin:\n    print(line, end='', file=open({str(out)!r}, 'a'))"
    app = App("host", "memory://")
    feed_process(app, numbers, python(code), group="host.feed")
    async with app:
        await app.publish_many([numbers(n) for n in range(100)])
        await until(lambda: app.stats()["host.feed"].handled == 100, "all were written")
        await app.publish(Message("numbers.written", data="two\nlines"))
        await until(lambda: app.stats()["host.feed"].dead == 1, "a line is a line")
    assert [int(line) for line in out.read_text().split()] == list(range(100))


async def test_one_that_ended_is_started_for_the_next_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"import os\nline = input()\nprint(line, os.getpid(), file=open({str(out)!r}, 'a'))"
    app, said = App("host", "memory://"), list[str]()
    feed_process(app, numbers, python(code), group="host.feed")

    def read(n: int) -> bool:
        said[:] = out.read_text().splitlines() if out.exists() else []
        return len(said) > n and gone(int(said[-1].split()[1]))

    async with app:
        for n in range(3):
            await app.publish(numbers, n)
            await until(lambda: read(n), "it was read, and has ended")  # noqa: B023
    assert [line.split()[0] for line in said] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("to", "command", "said"),
    [
        (numbers, ["date"], "lines cannot be published"),
        (Topic("lines.*", str), ["date"], "lines cannot be published"),
        (lines, "date", "a command cannot be 'date'"),
        (lines, [], "a command cannot be"),
    ],
)
def test_refused_at_the_line(to: Topic[Any], command: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        run_process(App("host", "memory://"), command, to)
    if said.startswith("a command"):
        with pytest.raises(InvalidOption, match=said):
            feed_process(App("host", "memory://"), to, command)
