"""The synchronous client: real files and a real server, threads, forks and the end of the interpreter."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import Struct
from tests.conformance.engines import engine_bus

import tidings
from tidings import App, Client, Message, NoAnswerer, RequestTimeout, Service, Topic, UsageError
from tidings.kernel.errors import (
    AnswerFailed,
    BusUnavailable,
    InvalidName,
    InvalidOption,
    InvalidURL,
    NotOpen,
    PayloadRefused,
    TooLarge,
)


class Order(Struct):
    id: int


placed = Topic("orders.placed", Order)
doubled = Service("numbers.double", int, int)
counted = Service("numbers.count", int, int)
silent = Service("numbers.silent", int, int)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'bus.db'}"


def server() -> App:
    app = App("server")

    @app.answer(doubled)
    async def double(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return 2 * n

    @app.answer(counted)
    async def count(n: int) -> Any:
        for i in range(n):
            yield i

    @app.answer(silent)
    async def say_nothing(n: int) -> int:
        asked.set()
        await asyncio.sleep(3600)
        return n

    return app


asked = threading.Event()  # the silent service has a request


@contextmanager
def serving(url: str) -> Iterator[App]:
    """A server in a thread of its own."""
    app, ready, loops = server(), threading.Event(), list[asyncio.AbstractEventLoop]()
    app.use(url)
    app.grace = 0.1
    asked.clear()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await app.serve(ready.set)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield app
    finally:
        loops[0].call_soon_threadsafe(app.stop)
        thread.join()


def stored(url: str, topic: str = "orders.placed") -> list[Message[Any]]:
    """All that is on the bus."""

    async def look() -> list[Message[Any]]:
        app = App("look")
        app.use(url)
        async with app.connect():
            bus: Any = app.bus()
            return [found.message for found in await bus.peek(topic, limit=1_000_000)]

    return asyncio.run(look())


def script(code: str, *arguments: str, error: str = "") -> str:
    """What a program of its own prints. Its errors must be these."""
    head = "import os, sys, threading, time, tidings\nfrom tidings import Service, Topic\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "TIDINGS_URL"},
    )
    assert (done.returncode, done.stderr) == (0, error)
    return done.stdout


def here(offset: int = 0) -> str:
    """``file:line`` of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno + offset}"


def running(bus: Client, calls: int) -> None:
    """Wait until so many calls are under way."""
    while bus._link is None or len(bus._link.calls) < calls:
        os.sched_yield()


def in_threads(many: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(work, range(many)))


# -- what it does


def test_what_is_published_is_on_the_bus(url: str) -> None:
    with tidings.connect(url, name="web") as bus:
        bus.publish(placed, Order(1), key="k", headers={"tenant": "a"}, id="mine")
        (first,) = stored(url)
        assert (first.id, first.key, first.source, first.header("tenant")) == ("mine", "k", "web", "a")
        bus.publish(placed(Order(2)))
        bus.publish_many(placed(Order(n)) for n in (3, 4))
        bus.publish_many([])
    assert [m.body for m in stored(url)] == [b'{"id":%d}' % n for n in (1, 2, 3, 4)]


def test_it_asks(url: str) -> None:
    with serving(url), tidings.connect(url) as bus:
        assert bus.request(doubled, 21) == 42
        assert bus.request("numbers.double", 4, int, timeout="5s") == 8
        assert list(bus.request_stream(counted, 5)) == [0, 1, 2, 3, 4]
        with pytest.raises(AnswerFailed, match="ValueError: negative") as failed:
            bus.request(doubled, -1)
        assert failed.value.where == here(-1)


def test_a_stream_may_be_left(url: str) -> None:
    with serving(url), tidings.connect(url) as bus:
        replies = bus.request_stream(counted, 1_000)
        assert next(replies) == 0
        del replies
        for reply in bus.request_stream(counted, 1_000):
            if reply == 3:
                break
        assert bus.request(doubled, 1) == 2


def test_without_with_the_first_call_opens(url: str, tmp_path: Path) -> None:
    bus = tidings.connect(url)
    assert not (tmp_path / "bus.db").exists()
    bus.publish(placed, Order(1))
    bus.close()
    bus.close()
    assert len(stored(url)) == 1
    with pytest.raises(NotOpen) as refused:
        bus.publish(placed, Order(2))
    assert refused.value.where == here(-1)
    assert "tidings.connect" in refused.value.mend


def test_a_client_that_is_forgotten_ends_its_thread(url: str) -> None:
    bus = tidings.connect(url)
    bus.publish(placed, Order(1))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tidings client"]
    del bus
    thread.join(30)
    assert not thread.is_alive()


def test_which_bus(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIDINGS_URL", raising=False)
    with pytest.raises(InvalidOption, match="which bus") as unnamed:
        tidings.connect()
    assert unnamed.value.where == here(-1)
    with pytest.raises(InvalidURL, match="sqlite") as misspelt:
        tidings.connect("sqlit:///x.db")
    assert misspelt.value.where == here(-1)
    with pytest.raises(InvalidURL):
        tidings.connect("bus.db")
    monkeypatch.setenv("TIDINGS_URL", url)
    for given in (None, f"sqlite:///{tmp_path / 'other.db'}"):  # as everywhere: the environment beats the code
        with tidings.connect(given) as bus:
            bus.publish(placed, Order(1))
    assert len(stored(url)) == 2


def test_an_app_lends_its_name_and_its_buses(url: str, tmp_path: Path) -> None:
    second = f"sqlite:///{tmp_path / 'second.db'}"
    app = App("shop", url, devices=second)
    with tidings.connect(app) as bus:
        bus.publish(placed, Order(1))
        bus.publish(Topic("orders.placed", int, bus="devices"), 7)
        with pytest.raises(InvalidName):
            bus.publish(Topic("orders.placed", int, bus="device"), 7)
    assert [m.source for m in stored(url) + stored(second)] == ["shop", "shop"]


# -- errors are those of the app, at the caller's line


def test_what_is_wrong_is_told_at_its_line(url: str) -> None:
    nobody: Any = "someone"
    with tidings.connect(url) as bus:
        with pytest.raises(PayloadRefused) as wrong_type:
            bus.publish(placed, nobody)
        assert wrong_type.value.where == here(-1)
        with pytest.raises(PayloadRefused) as not_json:
            bus.publish(Topic("x"), {"n": float("nan")})
        assert not_json.value.where == here(-1)
        with pytest.raises(TooLarge) as large:
            bus.publish_many([Topic("x", bytes)(b"x" * 2**24)])
        assert large.value.where == here(-1)
        with pytest.raises(InvalidOption) as bad_timeout:
            bus.request(doubled, 1, timeout="soon")
        assert bad_timeout.value.where == here(-1)
        with pytest.raises(NoAnswerer) as unanswered:
            bus.request(doubled, 1)
        assert unanswered.value.where == here(-1)
        bus.publish(placed, Order(1))
    assert len(stored(url)) == 1


def test_a_bus_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/missing/bus.db"
    bus, together = tidings.connect(url), threading.Barrier(8)

    def publish(n: int) -> str:
        """Where it says that it failed."""
        together.wait()
        try:
            if n % 2:
                bus.publish(placed, Order(n))
            else:
                bus.publish(placed, Order(n))
        except BusUnavailable as error:
            return error.where
        return "it did not fail"

    assert in_threads(8, publish) == [here(-5), here(-7)] * 4
    with pytest.raises(BusUnavailable) as unavailable, bus:
        pass
    assert unavailable.value.where == here(-2)
    (tmp_path / "missing").mkdir()
    bus.publish(placed, Order(1))
    bus.close()
    assert len(stored(url)) == 1


async def test_not_where_an_event_loop_runs(url: str) -> None:
    bus = tidings.connect(url)
    for call in (lambda: bus.publish(placed, Order(1)), lambda: bus.request(doubled, 1), bus.__enter__):
        with pytest.raises(UsageError, match="event loop") as refused:
            call()
        assert "app.connect()" in refused.value.mend
    with pytest.raises(UsageError, match="event loop"):
        next(bus.request_stream(counted, 1))
    await asyncio.to_thread(bus.publish, placed, Order(1))  # where a web framework runs its synchronous views
    bus.close()
    assert len(await asyncio.to_thread(stored, url)) == 1


# -- deadlines, and interruptions


def test_a_deadline(url: str) -> None:
    with serving(url), tidings.connect(url) as bus:
        with pytest.raises(RequestTimeout, match=r"numbers\.silent within 0\.2 s") as late:
            bus.request(silent, 1, timeout=0.2)
        assert late.value.where == here(-1)
        with pytest.raises(RequestTimeout):
            list(bus.request_stream(silent, 1, timeout="200ms"))
        assert bus.request(doubled, 2) == 4


def test_a_deadline_counts_from_before_the_bus_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bus = tidings.connect(f"redis://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(RequestTimeout) as late:
            bus.request(doubled, 1, timeout=0.1)
        assert late.value.where == here(-1)
    bus.close()


def test_closing_ends_requests_and_finishes_publishing(url: str, tmp_path: Path) -> None:
    with serving(url):
        bus = tidings.connect(url)
        with ThreadPoolExecutor(2) as pool:
            asking = pool.submit(bus.request, silent, 1)
            assert asked.wait(30)
            other = apsw.Connection(str(tmp_path / "bus.db"))
            other.execute("BEGIN IMMEDIATE")  # nobody can commit
            publishing = pool.submit(bus.publish, placed, Order(1))
            running(bus, 2)
            closing = threading.Thread(target=bus.close)
            closing.start()
            with pytest.raises(NotOpen, match="closed"):
                asking.result()
            assert not publishing.done()
            other.execute("ROLLBACK")
            publishing.result()
            closing.join()
    assert len(stored(url)) == 1


INTERRUPTED = """
import asyncio, signal
from tidings import App
app, ready = App("server", sys.argv[1]), threading.Event()

@app.answer("silent")
async def interrupt(n: int) -> int:
    await asyncio.sleep(0.5)  # Python may sleep through a signal that comes just before the asking thread waits
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(3600)
    return n

@app.answer("double")
async def double(n: int) -> int:
    return 2 * n

app.grace = 0.1
threading.Thread(target=lambda: asyncio.run(app.serve(ready.set)), daemon=True).start()
ready.wait()
with tidings.connect(sys.argv[1]) as bus:
    requests = bus.request, lambda *asked, **within: next(bus.request_stream(*asked, **within))
    for request in requests:
        try:
            request("silent", 1, int, timeout="1h")
        except KeyboardInterrupt:
            print("interrupted")
    while bus._link.calls:  # until the loop has given them up
        os.sched_yield()
    print(bus.request("double", 2, int))
    bus.publish(Topic("orders.placed"), {"id": 1})
print("closed")
"""


def test_ctrl_c_while_waiting_leaves_nothing_broken(url: str) -> None:
    assert script(INTERRUPTED, url).split() == ["interrupted", "interrupted", "4", "closed"]
    assert len(stored(url)) == 1


# -- threads


def test_many_threads_share_a_client(url: str) -> None:
    bus = tidings.connect(url)
    with serving(url):

        def work(n: int) -> list[int]:
            for i in range(20):
                bus.publish(placed, Order(100 * n + i))
            return [bus.request(doubled, n), *bus.request_stream(counted, 2)]

        assert in_threads(16, work) == [[2 * n, 0, 1] for n in range(16)]
    bus.close()
    assert sorted(m.body for m in stored(url)) == sorted(
        b'{"id":%d}' % (100 * n + i) for n in range(16) for i in range(20)
    )


def commits(wal: Path) -> int:
    """Of SQLite's write-ahead log, since it began: frames that say how large the database is after a commit."""
    log = wal.read_bytes()
    page, salts = int.from_bytes(log[8:12]), log[16:24]
    frames = [log[at : at + 24] for at in range(32, len(log), 24 + page)]
    return sum(frame[8:16] == salts and frame[4:8] != bytes(4) for frame in frames)


def test_what_threads_publish_at_once_is_committed_together(url: str, tmp_path: Path) -> None:
    many = 32
    with tidings.connect(url) as bus:
        bus.publish(placed, Order(0))
        before, other = commits(tmp_path / "bus.db-wal"), apsw.Connection(str(tmp_path / "bus.db"))
        other.execute("BEGIN IMMEDIATE")  # nobody can commit
        with ThreadPoolExecutor(many) as pool:
            published = [pool.submit(bus.publish, placed, Order(n)) for n in range(many)]
            running(bus, many)
            other.execute("ROLLBACK")
        assert all(future.exception() is None for future in published)
        assert commits(tmp_path / "bus.db-wal") - before < many / 2
    assert len(stored(url)) == many + 1


# -- forks

FORKED = """
url, used = sys.argv[1:]
numbers = Topic("orders.placed", int)
bus = tidings.connect(url)
if used == "used":
    bus.publish(numbers, 0)
children = []
for child in range(1, 4):
    if not (pid := os.fork()):
        for n in range(10):
            bus.publish(numbers, 100 * child + n)
        sys.exit()  # a worker's usual end
    children.append(pid)
    bus.publish(numbers, child)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
bus.publish(numbers, 4)
"""
FORKED_NUMBERS = {1, 2, 3, 4, *(100 * child + n for child in (1, 2, 3) for n in range(10))}


@pytest.mark.parametrize("used", ["used", "unused"])
def test_after_a_fork_both_go_on(url: str, used: str) -> None:
    script(FORKED, url, used)
    assert sorted(int(m.body) for m in stored(url)) == sorted(FORKED_NUMBERS | ({0} if used == "used" else set()))


def test_forks_while_other_threads_publish(url: str) -> None:
    script(
        """
        numbers, stop = Topic("orders.placed", int), threading.Event()
        with tidings.connect(sys.argv[1]) as bus:
            def publish(thread):
                for n in range(100):
                    bus.publish(numbers, 1000 * thread + n)
            threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
            for thread in threads:
                thread.start()
            for child in range(5):
                if not (pid := os.fork()):
                    bus.publish(numbers, 10_000 + child)
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
            for thread in threads:
                thread.join()
        """,
        url,
    )
    expected = {*(1000 * thread + n for thread in range(4) for n in range(100)), *range(10_000, 10_005)}
    assert sorted(int(m.body) for m in stored(url)) == sorted(expected)


def test_a_request_outlives_a_fork_and_stays_with_its_process(url: str) -> None:
    """A child cannot have the replies to its parent; SQLite's file cannot be had either while its parent has it."""
    with serving(url):
        said = script(
            """
            from tidings.kernel.errors import BusForked, NotOpen
            bus = tidings.connect(sys.argv[1])
            replies = bus.request_stream("numbers.count", 100, int)
            next(replies)
            asked = threading.Thread(target=lambda: bus.request("numbers.silent", 1, int, timeout="5s"))
            asked.start()
            asked.join(0.5)
            if not os.fork():
                try:
                    next(replies)
                except NotOpen as error:
                    print(type(error).__name__)
                try:
                    bus.publish(Topic("x"), 1)
                except BusForked:
                    print("BusForked")
                sys.stdout.flush()
                os._exit(0)
            os.wait()
            print(len(list(replies)))
            os._exit(0)
            """,
            url,
        )
    assert said.split() == ["NotOpen", "BusForked", "99"]


# -- the end of the interpreter


def test_threads_still_publishing_when_the_program_ends(url: str) -> None:
    script(
        """
        bus = tidings.connect(sys.argv[1])
        def publish(thread):
            time.sleep(0.05)
            for n in range(50):
                bus.publish(Topic("orders.placed"), n)
        for thread in range(4):
            threading.Thread(target=publish, args=(thread,)).start()
        """,
        url,
    )
    assert len(stored(url)) == 200


def test_a_daemon_thread_is_waiting_when_the_program_ends(url: str) -> None:
    with serving(url):
        script(
            """
            bus, began = tidings.connect(sys.argv[1]), threading.Event()
            def ask():
                began.set()
                bus.request("numbers.silent", 1, int)
            threading.Thread(target=ask, daemon=True).start()
            began.wait()
            bus.publish(Topic("orders.placed"), 1)
            """,
            url,
        )
    assert len(stored(url)) == 1


def test_the_end_by_an_exception(url: str) -> None:
    code = """
        import atexit
        bus = tidings.connect(sys.argv[1])
        atexit.register(lambda: bus.publish(Topic("orders.placed"), "goodbye"))
        bus.publish(Topic("orders.placed"), "hello")
        sys.exit("the end")
    """
    with pytest.raises(AssertionError, match="the end"):
        script(code, url)
    assert [m.body for m in stored(url)] == [b"hello", b"goodbye"]


# -- a server


@pytest.mark.parametrize("engine", ["redis", "nats"])
def test_on_a_server(engine: str) -> None:
    url: Any = engine_bus(engine).url(30.0)
    with serving(url), tidings.connect(url) as bus:
        bus.publish(placed, Order(1))
        assert in_threads(8, lambda n: bus.request(doubled, n)) == [2 * n for n in range(8)]
        assert list(bus.request_stream(counted, 3)) == [0, 1, 2]
        script(FORKED, url, "used")
    bodies = [m.body for m in stored(url)]
    assert len(bodies) == len(FORKED_NUMBERS) + 2
    assert {int(body) for body in bodies if body.isdigit()} == FORKED_NUMBERS | {0}
