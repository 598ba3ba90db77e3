"""Threads and child processes, real ones. A test waits for events, pipes and files, never for time to pass."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.app import executor_handlers as handlers

from tidings import Defer, Message, Reject, Retry, executors
from tidings.executors import MOST, PROCESS_CHUNK, THREAD_CHUNK, Paced, Processes, Threads, check_importable
from tidings.inject import Recipe, where
from tidings.kernel.errors import HandlerCrashed, HandlerTimeout, InvalidHandler, Skip, Undecodable
from tidings.kernel.handler import Origin, emitter
from tidings.kernel.transport import Delivery, Session

LONG = 20.0  # seconds: what a test that fails waits for
FOREVER = 600.0
ROOT = Path(__file__).parents[2]


def delivery(data: Any = None, **said: Any) -> Delivery:
    body = data if isinstance(data, bytes) else msgspec.json.encode(data)
    kind = {"content_type": "application/octet-stream"} if isinstance(data, bytes) else {}
    return Delivery(Message("in", body=body, id="1", **kind, **said), Session())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children() -> set[int]:
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if line.split()[1] != "ps"}


def descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


# -- threads


@contextlib.asynccontextmanager
async def threads(call: Callable[[Delivery], Any], workers: int = 2) -> AsyncIterator[Threads]:
    executor = Threads(call, workers, "test")
    try:
        yield executor
    finally:
        await executor.close(LONG)


async def all_of(executor: Any, deliveries: Sequence[Delivery]) -> list[Any]:
    """What a worker would do: the rest goes in again."""
    outcomes: list[Any] = []
    while len(outcomes) < len(deliveries):
        outcomes += await executor(deliveries[len(outcomes) :][: executor.limit()])
    return outcomes


async def test_thread_works_through_a_chunk_in_order() -> None:
    seen, names = [], set()

    def call(d: Delivery) -> tuple[Any, ...]:
        seen.append(d.message.id)
        names.add(threading.current_thread().name)
        return (d.message.id,)

    chunk = [Delivery(Message("in", id=str(n)), Session()) for n in range(50)]
    async with threads(call) as executor:
        outcomes = await all_of(executor, chunk)
    assert outcomes == [(str(n),) for n in range(50)]
    assert seen == [str(n) for n in range(50)]
    assert names == {"tidings test"}


async def test_thread_outcomes_are_results_and_exceptions() -> None:
    errors = [ValueError("a"), Retry("5s"), StopIteration(3)]

    def call(d: Delivery) -> tuple[Any, ...]:
        if d.failures < len(errors):
            raise errors[d.failures]
        if d.failures == 3:
            sys.exit("enough")
        if d.failures == 4:
            raise KeyboardInterrupt
        return ()

    async with threads(call, 1) as executor:
        outcomes = await all_of(executor, [Delivery(Message("in"), Session(), None, n) for n in range(6)])
        assert outcomes[:3] == errors
        assert [type(outcome) for outcome in outcomes[3:5]] == [HandlerCrashed, HandlerCrashed]
        assert "SystemExit('enough')" in str(outcomes[3])
        assert "sys.exit" in "".join(traceback.format_exception(outcomes[3]))
        assert outcomes[5] == ()
        assert sum(t.name == "tidings test" for t in threading.enumerate()) == 1


async def test_thread_returns_early_after_a_slow_call() -> None:
    slow, ran = threading.Event(), []

    def call(d: Delivery) -> tuple[Any, ...]:
        ran.append(d.failures)
        if d.failures == 2:
            slow.wait(3 * THREAD_CHUNK)
        return ()

    async with threads(call) as executor:
        executor.mean = THREAD_CHUNK / MOST
        assert executor.limit() == MOST
        outcomes = await executor([Delivery(Message("in"), Session(), None, n) for n in range(10)])
        assert len(outcomes) == len(ran) <= 3  # (a busy machine may stop it sooner)
        if len(ran) == 3:
            assert executor.limit() == 1


def test_pace_aims_at_its_target() -> None:
    pace = Paced(0.001)
    assert pace.limit() == 1  # nothing is known
    for _ in range(20):
        pace.record(pace.limit(), pace.limit() * 10e-6)
    assert 90 <= pace.limit() <= 100
    for _ in range(20):
        pace.record(pace.limit(), pace.limit() * 1e-9)
    assert pace.limit() == MOST
    pace.record(200, 0.0021)  # one of them was slow
    assert pace.limit() == 1
    sizes = []
    while pace.limit() < MOST:
        pace.record(pace.limit(), pace.limit() * 1e-6)
        sizes.append(pace.limit())
    assert sizes == sorted(sizes)
    assert len(sizes) <= 10
    pace.record(1, 0.0)
    assert pace.limit() == MOST


async def test_each_call_in_a_thread_has_a_context_of_its_own() -> None:
    variable = ContextVar("variable", default="nothing")
    seen = []

    def call(d: Delivery) -> tuple[Any, ...]:
        seen.append(variable.get())
        variable.set("left behind")
        return ()

    variable.set("the caller's")
    async with threads(call, 1) as executor:
        await all_of(executor, [delivery()] * 3)
    assert seen == ["the caller's"] * 3
    assert variable.get() == "the caller's"


async def test_threads_run_side_by_side_and_no_more_than_workers() -> None:
    running, most, gate, meet = 0, 0, threading.Lock(), threading.Barrier(3)

    def call(d: Delivery) -> tuple[Any, ...]:
        nonlocal running, most
        with gate:
            running += 1
            most = max(most, running)
        meet.wait(LONG)
        with gate:
            running -= 1
        return ()

    async with threads(call, 3) as executor:
        assert not executor._threads  # started when needed
        await asyncio.gather(*(executor([delivery()]) for _ in range(9)))
        assert len(executor._threads) == 3
    assert most == 3


async def test_cancelled_thread_goes_on_and_its_late_result_is_dropped() -> None:
    started, go, ran = threading.Event(), threading.Event(), []

    def call(d: Delivery) -> tuple[Any, ...]:
        ran.append(d.message.id)
        if d.message.id == "slow":
            started.set()
            assert go.wait(LONG)
        return (d.message.id,)

    async with threads(call, 1) as executor:
        first = asyncio.create_task(executor([Delivery(Message("in", id="slow"), Session())]))
        await until(started.is_set)
        queued = asyncio.create_task(executor([Delivery(Message("in", id="never"), Session())]))
        await asyncio.sleep(0)
        first.cancel()
        queued.cancel()
        await asyncio.wait({first, queued})
        assert first.cancelled()
        go.set()
        assert await executor([Delivery(Message("in", id="next"), Session())]) == [("next",)]
    assert ran == ["slow", "next"]  # what had not started when it was cancelled never does


async def test_closing_leaves_no_thread_and_allows_a_new_start() -> None:
    before = set(threading.enumerate())
    executor = Threads(lambda d: (), 3, "test")
    for _ in range(2):
        await asyncio.gather(*(executor([delivery()]) for _ in range(6)))
        await executor.close()
        assert set(threading.enumerate()) == before
    await executor.close()


async def test_close_waits_for_running_threads_within_its_grace_and_never_blocks_the_loop() -> None:
    started, go = threading.Event(), threading.Event()

    def call(d: Delivery) -> tuple[Any, ...]:
        started.set()
        assert go.wait(LONG)
        return ("done",)

    executor = Threads(call, 1, "test")
    task = asyncio.create_task(executor([delivery()]))
    await until(started.is_set)
    (thread,) = executor._threads
    closing = asyncio.create_task(executor.close(LONG))
    await asyncio.sleep(0.01)  # the loop runs on
    assert not closing.done()
    go.set()
    await closing
    assert not thread.is_alive()
    assert await task == [("done",)]


def test_thread_may_outlive_its_loop_quietly(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    started, go = threading.Event(), threading.Event()
    left: list[threading.Thread] = []

    def call(d: Delivery) -> tuple[Any, ...]:
        started.set()
        assert go.wait(LONG)
        return ()

    async def main() -> None:
        executor = Threads(call, 1, "test")
        task = asyncio.create_task(executor([delivery()]))
        await until(started.is_set)
        left.extend(executor._threads)
        await executor.close(0.0)
        task.cancel()

    asyncio.run(main())
    assert left[0].is_alive()
    go.set()
    left[0].join(LONG)
    assert not left[0].is_alive()
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_idle_thread_holds_no_messages() -> None:
    class Marked(Message):  # type: ignore[type-arg]
        pass

    async with threads(lambda d: ()) as executor:
        await executor([Delivery(Marked("in"), Session())])
        (thread,) = executor._threads
        await until(lambda: sys._current_frames()[thread.ident or 0].f_code is executors._work.__code__)
        gc.collect()
        assert not [found for found in gc.get_objects() if type(found) is Marked]


# -- processes


def recipe(fn: Callable[..., Any], **said: Any) -> Recipe:
    origin = Origin(name=fn.__qualname__, where=where(fn), source="shop", group="shop.group")
    return Recipe(
        **{
            "fn": fn,
            "template": "in",
            "type": Any,
            "lax": False,
            "origin": origin,
            "overrides": {},
            "emitter": emitter,
            **said,
        }
    )


@contextlib.asynccontextmanager
async def processes(
    fn: Callable[..., Any], workers: int = 1, timeout: float = FOREVER, **said: Any
) -> AsyncIterator[Processes]:
    executor = Processes(recipe(fn, **said), workers, timeout)
    try:
        yield executor
    finally:
        await executor.close()


def data_of(outcome: Any) -> Any:
    assert not isinstance(outcome, BaseException), outcome
    (message,) = outcome
    return msgspec.json.decode(message.body)


async def test_process_works_through_a_chunk_in_order() -> None:
    async with processes(handlers.echo) as executor:
        outcomes = await all_of(executor, [delivery(n) for n in range(50)])
    assert [data_of(outcome) for outcome in outcomes] == list(range(50))
    (message,) = outcomes[7]
    assert (message.topic, message.source, message.causation_id) == ("out", "shop", "1")
    assert message.data is msgspec.UNSET


async def test_process_sees_the_whole_delivery() -> None:
    given = delivery(key="k", headers=(("a", "é"),))
    given.failures, given.crashes = 2, 1
    async with processes(handlers.attempt) as executor:
        assert data_of((await executor([given]))[0]) == [4, [["a", "é"]], "k"]


async def test_process_inherits_no_descriptors_and_no_main(tmp_path: Path) -> None:
    with (tmp_path / "bus").open("w") as bus:
        os.set_inheritable(bus.fileno(), False)  # as SQLite opens its files
        async with processes(handlers.misbehave) as executor:
            listed = data_of((await executor([delivery(["descriptors"])]))[0])
            assert len(listed) <= 6  # 0, 1, 2, the pair's, /dev/null, the listing itself
            assert data_of((await executor([delivery(["subprocess"])]))[0]) == 0
    async with processes(handlers.who) as executor:
        assert data_of((await executor([delivery()]))[0])["main"] is None


async def test_process_errors_cross_as_themselves() -> None:
    async with processes(handlers.fail) as executor:

        async def error(name: str) -> Any:
            return (await executor([delivery(name)]))[0]

        value = await error("value")
        assert type(value) is ValueError
        assert value.args == ("boom",)
        system = await error("system")
        assert isinstance(system, FileNotFoundError)
        assert system.filename == "x.txt"
        assert str(await error("unicode")).startswith("'utf-8' codec can't decode byte 0xff")
        picky = await error("picky")
        assert isinstance(picky, handlers.Picky)
        assert (str(picky), picky.code, picky.detail) == ("7: said", 7, "said")
        ours = await error("ours")
        assert isinstance(ours, HandlerTimeout)
        assert (ours.what, ours.why, ours.mend) == ("said", "because", "so")
        retry, defer = await error("retry"), await error("defer")
        assert (type(retry), retry.delay, str(retry)) == (Retry, "5m", "vendor is down")
        assert (type(defer), defer.delay, str(defer)) == (Defer, 30, "too early")
        assert [type(await error(name)) for name in ("reject", "skip")] == [Reject, Skip]
        undecodable = (await executor([delivery(b"")]))[0]
        assert isinstance(undecodable, Undecodable | KeyError)


async def test_process_error_brings_its_traceback() -> None:
    async with processes(handlers.fail) as executor:
        outcomes = await all_of(executor, [delivery(name) for name in ("value", "retry", "unpicklable")])
    for outcome in outcomes:
        text = "".join(traceback.format_exception(outcome))
        assert "executor_handlers.py" in text
        assert "in fail" in text


async def test_process_errors_that_cannot_cross_are_told() -> None:
    async with processes(handlers.fail) as executor:
        unpicklable, local, ended, interrupted = await all_of(
            executor, [delivery(name) for name in ("unpicklable", "local", "exit", "interrupt")]
        )
        assert type(unpicklable) is type(local) is RuntimeError
        assert str(unpicklable) == "tests.app.executor_handlers.Unpicklable: holds a lock"
        assert str(local).endswith("Local: nobody knows me")
        assert type(ended) is type(interrupted) is HandlerCrashed
        assert "SystemExit(4)" in str(ended)
        assert len(executor._children) == 1  # none of these ended the child


async def test_process_output_that_cannot_cross_fails_alone() -> None:
    async with processes(handlers.unsendable) as executor:
        good, bad, other = await all_of(executor, [delivery(data) for data in ("a", "bad", "b")])
        with pytest.raises(msgspec.ValidationError, match="str"):  # the worker then finds out which
            await executor([delivery("wrong")])
        assert len(executor._children) == 1
    assert isinstance(bad, TypeError)
    assert [data_of(good), data_of(other)] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("poison", "told"), [(["exit", 3], "exit code 3"), (["exit", 0], "exit code 0"), (["kill"], "SIGKILL")]
)
async def test_crash_fails_the_chunk_and_then_only_the_call(poison: Any, told: str) -> None:
    chunk = [delivery("ok"), delivery(poison), delivery("ok")]
    async with processes(handlers.misbehave) as executor:
        with pytest.raises(HandlerCrashed, match=told) as crashed:
            await executor(chunk)
        assert "executor_handlers.py" in crashed.value.where
        assert "misbehave()" in str(crashed.value)
        assert executor.limit() == 1
        first = data_of((await executor(chunk[:1]))[0])
        with pytest.raises(HandlerCrashed, match=told):
            await executor(chunk[1:2])
        assert data_of((await executor(chunk[2:]))[0]) != first


async def test_child_killed_while_idle_is_replaced_unnoticed() -> None:
    async with processes(handlers.misbehave) as executor:
        pid = data_of((await executor([delivery("ok")]))[0])
        os.kill(pid, signal.SIGKILL)
        (child,) = executor._children
        await until(lambda: child.process.poll() is not None)
        assert data_of((await executor([delivery("ok")]))[0]) != pid


async def test_crash_is_seen_although_a_fork_of_the_child_lives(tmp_path: Path) -> None:
    async with processes(handlers.misbehave) as executor:
        with pytest.raises(HandlerCrashed, match="exit code 5"):
            await executor([delivery(["fork", str(tmp_path / "pid")])])
    forked = int((tmp_path / "pid").read_text())
    assert alive(forked)
    os.kill(forked, signal.SIGKILL)


async def test_several_crashes_in_a_row_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("tidings.executors.asyncio.sleep", noted)
    executor = Processes(recipe(handlers.misbehave), 1, FOREVER)
    for _ in range(4):
        with pytest.raises(HandlerCrashed):
            await executor([delivery(["exit", 1])])
    assert waits == [executors.AGAIN, executors.AGAIN * 2]
    await executor([delivery("ok")])
    with pytest.raises(HandlerCrashed):
        await executor([delivery(["exit", 1])])
    waits.clear()
    await executor([delivery("ok")])
    assert waits == []  # an answer in between: in a row no more
    monkeypatch.undo()
    await executor.close()


async def test_timeout_kills_and_restarts(tmp_path: Path) -> None:
    async with processes(handlers.misbehave, timeout=1.0) as executor:
        with pytest.raises(HandlerTimeout, match=r"longer than 1 s"):
            await executor([delivery("ok"), delivery(["hang", str(tmp_path / "pid")]), delivery("ok")])
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: not alive(pid))
        assert data_of((await executor([delivery("ok")]))[0]) != pid


async def test_process_returns_early_and_slows_down_after_a_slow_call() -> None:
    async with processes(handlers.misbehave) as executor:
        executor.mean = PROCESS_CHUNK / MOST
        outcomes = await executor([delivery("ok"), delivery(["spin", 3 * PROCESS_CHUNK]), delivery("ok")])
        assert 1 <= len(outcomes) <= 2
        if len(outcomes) == 2:
            assert executor.limit() == 1


async def test_process_chunks_grow_with_fast_calls() -> None:
    async with processes(handlers.nothing) as executor:
        assert executor.limit() == 1
        async with asyncio.timeout(LONG):
            while executor.limit() < MOST:
                await executor([delivery()] * executor.limit())


@pytest.mark.parametrize("size", [8 * 1024 * 1024, 16 * 1024 * 1024])
async def test_big_payloads_cross_both_ways_and_the_loop_stays_free(size: int) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with processes(handlers.grow, type=bytes) as executor:
        ticking = asyncio.create_task(tick())
        for count in (1, 3):
            outcomes = await executor([delivery(bytes(size))] * count)
            assert len(outcomes) == 1  # the others did not fit in
            assert outcomes[0][0].body == bytes(size) + b"!"
        ticking.cancel()
    assert ticks > 20


async def test_send_does_not_block_on_a_stopped_child() -> None:
    async with processes(handlers.grow, type=bytes, timeout=0.5) as executor:
        await executor([delivery(b"x")])
        (child,) = executor._children
        child.process.send_signal(signal.SIGSTOP)
        with pytest.raises(HandlerTimeout):
            await executor([delivery(bytes(16 * 1024 * 1024))])
        assert (await executor([delivery(b"x")]))[0][0].body == b"x!"


async def test_children_run_side_by_side(tmp_path: Path) -> None:
    async with processes(handlers.misbehave, workers=2) as executor:
        go = tmp_path / "go"
        calls = [delivery(["until", str(tmp_path / str(n)), str(go)]) for n in range(3)]
        tasks = [asyncio.create_task(executor([call])) for call in calls]
        await until(lambda: len(list(tmp_path.iterdir())) == 2)
        assert len(executor._children) == 2
        go.touch()
        outcomes = [(await task)[0] for task in tasks]
        assert len({data_of(outcome) for outcome in outcomes}) == 2


async def test_cancelled_call_is_killed_and_the_executor_goes_on(tmp_path: Path) -> None:
    async with processes(handlers.misbehave) as executor:
        task = asyncio.create_task(executor([delivery(["hang", str(tmp_path / "pid")])]))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: not alive(pid))
        assert data_of((await executor([delivery("ok")]))[0]) != pid


async def test_cancelled_start_leaves_nothing() -> None:
    before = children()
    executor = Processes(recipe(handlers.misbehave), 1, FOREVER)
    task = asyncio.create_task(executor([delivery("ok")]))
    await until(lambda: executor._children)
    task.cancel()
    await asyncio.wait({task})
    assert isinstance(data_of((await executor([delivery("ok")]))[0]), int)
    await executor.close()
    assert children() == before


async def test_child_leaves_signals_to_its_group_to_its_parent() -> None:
    async with processes(handlers.misbehave) as executor:
        pid = data_of((await executor([delivery(["interrupted"])]))[0])
        os.kill(pid, signal.SIGTERM)
        assert data_of((await executor([delivery("ok")]))[0]) == pid


async def test_close_lets_a_running_call_finish(tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    executor = Processes(recipe(handlers.misbehave), 2, FOREVER)
    task = asyncio.create_task(executor([delivery(["until", str(started), str(go)])]))
    await until(started.exists)
    closing = asyncio.create_task(executor.close(LONG))
    await asyncio.sleep(0.01)
    assert not closing.done()
    go.touch()
    await closing
    assert isinstance(data_of((await task)[0]), int)
    assert await executor([delivery("ok")]) == []  # closed: nothing starts


async def test_close_ends_a_call_that_does_not(tmp_path: Path) -> None:
    executor = Processes(recipe(handlers.misbehave), 1, FOREVER)
    task = asyncio.create_task(executor([delivery(["hang", str(tmp_path / "pid")])]))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    await executor.close(0.05)
    with pytest.raises(HandlerCrashed, match="SIGKILL"):
        await task
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_closing_leaves_no_process_thread_or_descriptor(tmp_path: Path) -> None:
    await asyncio.sleep(0)
    before = children(), set(threading.enumerate()), descriptors()
    async with processes(handlers.misbehave, workers=2, timeout=2.0) as executor:
        await asyncio.gather(*(executor([delivery("ok")]) for _ in range(4)))
        with pytest.raises(HandlerCrashed):
            await executor([delivery(["exit", 3])])
        with pytest.raises(HandlerTimeout):
            await executor([delivery(["hang", str(tmp_path / "pid")])])
        await asyncio.gather(*(executor([delivery("ok")]) for _ in range(4)))
    assert (children(), set(threading.enumerate()), descriptors()) == before


PARENT = """
import asyncio, sys
from tests.app.test_executors import Processes, delivery, handlers, recipe
async def main():
    executor = Processes(recipe(handlers.misbehave), 3, 600.0)
    idle, busy = (asyncio.create_task(executor([delivery(d)])) for d in ("ok", ["hang", sys.argv[1]]))
    print((await idle)[0][0].body.decode(), flush=True)
    await busy
if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:  # noqa: ASYNC220
        assert parent.stdout is not None
        idle = int(await asyncio.to_thread(parent.stdout.readline))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        busy = int((tmp_path / "pid").read_text())
        assert alive(idle)
        assert alive(busy)
        parent.kill()
        await until(lambda: not alive(idle) and not alive(busy))  # also the one that is in the middle of a call


UNGUARDED = """
import asyncio
from tests.app.test_executors import Processes, delivery, handlers, recipe
print("main runs", flush=True)
async def main():
    executor = Processes(recipe(handlers.misbehave), 1, 600.0)
    await executor([delivery("ok")])
    await executor.close()
asyncio.run(main())
"""


async def test_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environment, timeout=LONG, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "main runs\n", "")


# -- what cannot be a process handler


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Makes a module that this process has imported; later edits are for children only."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> Any:
        (tmp_path / "executor_made.py").write_text(text)
        monkeypatch.delitem(sys.modules, "executor_made", raising=False)
        return __import__("executor_made")

    return make


async def test_child_that_cannot_import_says_so_and_does_not_loop(
    module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module("def handle(data):\n    return None\n")
    (tmp_path / "executor_made.py").write_text("import nowhere_to_be_found\n")
    waits: list[float] = []
    sleep = asyncio.sleep

    def noted(seconds: float) -> Awaitable[None]:
        waits.append(seconds)
        return sleep(0)

    executor = Processes(recipe(made.handle), 1, FOREVER)
    with monkeypatch.context() as patched:
        patched.setattr("tidings.executors.asyncio.sleep", noted)
        for _ in range(4):
            with pytest.raises(InvalidHandler) as refused:
                await executor([delivery()])
    assert "nowhere_to_be_found" in refused.value.why
    assert "import executor_made" in refused.value.mend
    assert "executor_made.py:1" in refused.value.where
    assert waits == [executors.AGAIN, executors.AGAIN * 2]
    (tmp_path / "executor_made.py").write_text("def handle(data):\n    return None\n")
    assert await executor([delivery()]) == [()]  # mended
    await executor.close()


async def test_child_that_dies_while_it_imports_says_so(module: Callable[[str], Any], tmp_path: Path) -> None:
    made = module("def handle(data):\n    return None\n")
    (tmp_path / "executor_made.py").write_text("import os\nos._exit(9)\n")
    async with processes(made.handle) as executor:
        with pytest.raises(HandlerCrashed, match="exit code 9"):
            await executor([delivery()])


def test_recipe_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InvalidHandler, match="cannot be loaded in a child process") as refused:
        Processes(recipe(handlers.echo, overrides={handlers.echo: lambda data: None}), 1, 1.0)
    assert "pickle" in refused.value.why.lower()


class Holder:
    def method(self, data: Any) -> None: ...

    @staticmethod
    def static(data: Any) -> None: ...


def shadowed(data: Any) -> None: ...


def test_check_importable_takes_functions_of_modules(module: Callable[[str], Any]) -> None:
    check_importable(handlers.echo)
    check_importable(Holder.static)
    check = "from tidings.executors import check_importable\n"
    module(check + "def handle(data): ...\ncheck_importable(handle)\n")
    module(check + "def late(f):\n    check_importable(f)\n    return f\n@late\ndef handle(data): ...\n")
    twice = "@late\ndef handle(data): ...\n"
    module(check + "def late(f):\n    check_importable(f)\n    return f\n" + twice * 2)


def test_check_importable_refuses_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(data: Any) -> None: ...

    def in_main(data: Any) -> None: ...

    in_main.__module__, in_main.__qualname__ = "__main__", "in_main"
    original = shadowed
    monkeypatch.setattr(sys.modules[__name__], "shadowed", lambda data: None)
    for fn, why, mend in (
        (nested, "nested", "top level"),
        (lambda data: None, "lambda", "top level"),
        (Holder().method, "bound", "top level"),
        (original, "something else", "top level"),
        (in_main, "__main__", "tidings run module:app"),
    ):
        with pytest.raises(InvalidHandler) as refused:
            check_importable(fn)
        assert why in refused.value.why, fn
        assert mend in refused.value.mend
        assert Path(__file__).name in refused.value.where


async def test_threads_that_compute_take_turns_among_few() -> None:
    """Eight calls that compute at once make the loop wait for eight others; soon it waits for one."""

    def call(delivery: Delivery) -> Any:
        until, n = time.thread_time() + 0.02, 0
        while time.thread_time() < until:
            n += 1
        return ()

    executor, ended = Threads(call, 8, "test"), list[int]()

    async def calls() -> None:
        while executor.crew.allowed > 1:
            ended.append(len(await executor([delivery()])))

    async with asyncio.timeout(60):  # a busy machine may need several looks
        await asyncio.gather(*(calls() for _ in range(8)))
    assert set(ended) == {1}
    assert len(await executor([delivery()])) == 1
    await executor.close()


async def test_a_call_that_waits_for_its_turn_can_be_cancelled() -> None:
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def call(delivery: Delivery) -> Any:
        entered.release()
        leave.acquire()
        return ()

    executor = Threads(call, 2, "test")
    executor.crew.allowed = 1
    first, second, third = (asyncio.ensure_future(executor([delivery(n)])) for n in range(3))
    assert await asyncio.to_thread(entered.acquire, timeout=10)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    leave.release()
    assert len(await asyncio.wait_for(first, 10)) == 1
    leave.release()
    assert len(await asyncio.wait_for(third, 10)) == 1
    await executor.close()


async def test_closing_while_a_call_runs_ends_the_looking() -> None:
    """What threads use is looked at while they run; once closed there is nothing to look at."""
    entered, leave, errors = threading.Event(), threading.Event(), list[Any]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))

    def call(delivery: Delivery) -> Any:
        entered.set()
        leave.wait(10)
        return ()

    executor = Threads(call, 2, "test")
    calls = [asyncio.ensure_future(executor([delivery(n)])) for n in range(2)]
    assert await asyncio.to_thread(entered.wait, 10)
    third = asyncio.ensure_future(executor([delivery(3)]))  # the clocks of the first are known: looking begins
    async with asyncio.timeout(10):
        while not executor._looking:
            calls.append(asyncio.ensure_future(executor([delivery()])))
            await asyncio.sleep(0.005)
    await executor.close(grace=0.1)
    assert not executor._looking
    leave.set()
    for one in (*calls, third):
        one.cancel()
    assert errors == []
