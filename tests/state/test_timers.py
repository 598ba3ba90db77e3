"""What is due is called once, by one replica at a time, and is not lost with a failure or a process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.state.stores import STORES, url_of
from tests.state.test_handlers import kept, receiving
from tests.transports.consuming import until

from tidings import App, Message, State, Table, Topic, due, transact
from tidings.kernel.errors import InvalidHandler, InvalidName, InvalidOption
from tidings.patterns import ProcessManager, aggregator, debounce, resequencer
from tidings.patterns.message_store import MessageStore
from tidings.patterns.process_manager import Process
from tidings.store import Unit, Write, new_version
from tidings.timers import BATCH, Timer

fires: Topic[str] = Topic("fires", str)
elsewhere: Topic[str] = Topic("elsewhere", str, bus="second")
jobs = Table("jobs", str)


def writing(**due_at: float | None) -> Any:
    async def write(state: State) -> None:
        for key, at in due_at.items():
            state.put(jobs, key, f"job {key}", due=at)

    return write


@pytest.mark.parametrize("kind", STORES)
async def test_what_is_due_is_called_once_and_removed(kind: str, tmp_path: Path) -> None:
    app, calls = App("shop", url_of(kind, tmp_path)), Counter[tuple[str, str]]()

    @due(app, jobs, every="20ms")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        calls[key, job] += 1
        return fires(job, key=key)

    async with receiving(app, fires) as arrived:
        now = time.time()
        await transact(app, writing(a=now, b=now + 0.2, later=now + 3600, never=None))
        await until(lambda: len(arrived) == 2)
        assert calls == {("a", "job a"): 1, ("b", "job b"): 1}
        assert [message.key for message in arrived] == ["a", "b"]
        assert sorted(await kept(app, jobs)) == ["later", "never"]


@pytest.mark.parametrize("kind", STORES)
async def test_it_may_be_put_off_and_changed(kind: str, tmp_path: Path) -> None:
    app, calls = App("shop", url_of(kind, tmp_path)), list[str]()

    @due(app, jobs, every="20ms")
    async def fire(key: str, job: str, state: State) -> list[Message[str]]:
        calls.append(job)
        if len(calls) < 3:
            state.put(jobs, key, f"{job}!", due=time.time())
        else:
            state.put(jobs, key, "done")
        return [fires(job)]

    async with receiving(app, fires) as arrived:
        await transact(app, writing(a=time.time()))
        await until(lambda: len(arrived) == 3)
        assert calls == ["job a", "job a!", "job a!!"]
        assert await kept(app, jobs) == {"a": "done"}


async def test_a_failure_is_tried_again_and_nothing_of_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, calls = App("shop", url_of("sqlite", tmp_path)), Counter[str]()

    @due(app, jobs, every="20ms")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        calls[key] += 1
        state.put(jobs, "trace", "x")
        if key == "bad" and calls[key] < 3:
            raise RuntimeError("not now")
        return fires(key)

    async with receiving(app, fires) as arrived:
        now = time.time()
        await transact(app, writing(bad=now, good=now))
        await until(lambda: [message.data for message in arrived] == ["good", "bad"])
        assert calls == {"good": 1, "bad": 3}
    assert sum("is tried again in" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize("kind", STORES)
async def test_of_two_replicas_one_looks_and_the_other_takes_over(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path)
    apps = [App("shop", url), App("shop", url)]
    calls = [Counter[str](), Counter[str]()]

    def register(number: int) -> None:
        @due(apps[number], jobs, every="20ms")
        async def fire(key: str, job: str, state: State) -> Message[str]:
            calls[number][key] += 1
            return fires(key)

    register(0)
    register(1)
    async with receiving(apps[1], fires) as arrived:
        async with apps[0]:
            for n in range(20):
                await transact(apps[1], writing(**{f"k{n}": time.time()}))
                await until(lambda n=n: len(arrived) > n)
        await transact(apps[1], writing(last=time.time()))
        await until(lambda: len(arrived) == 21)  # after the other's lease
    both = calls[0] + calls[1]
    assert both == Counter([*(f"k{n}" for n in range(20)), "last"])
    assert calls[1]["last"] == 1


async def test_what_another_changed_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    app, calls = App("shop", url_of("sqlite", tmp_path)), list[str]()

    @due(app, jobs, every="20ms")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        calls.append(job)
        if len(calls) == 1:
            store: Any = app.bus()
            await store.commit([Unit([Write("jobs", key, b"changed", None, time.time(), new_version())])])
        return fires(job)

    async with receiving(app, fires) as arrived:
        await transact(app, writing(a=time.time()))
        await until(lambda: arrived)
        assert calls == ["job a", "changed"]
        assert [message.data for message in arrived] == ["changed"]


@pytest.mark.parametrize("kind", STORES)
async def test_one_look_is_for_all_that_is_due_however_much(kind: str, tmp_path: Path) -> None:
    app, calls = App("shop", url_of(kind, tmp_path)), Counter[str]()

    async def fire(key: str, job: str, state: State) -> None:
        calls[key] += 1

    async def write(state: State) -> None:
        for n in range(2 * BATCH + 1):
            state.put(jobs, f"k{n}", "x", due=time.time())

    async with app.connect():
        await transact(app, write)
        await Timer(jobs, fire, "", 60.0).look(app)
        assert await kept(app, jobs) == {}
    assert calls == Counter(f"k{n}" for n in range(2 * BATCH + 1))


@pytest.mark.parametrize("kind", STORES)
async def test_what_the_bus_refuses_is_put_off_said_and_in_nobodys_way(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, calls = App("shop", url_of(kind, tmp_path)), Counter[str]()

    async def fire(key: str, job: str, state: State) -> Message[Any] | None:
        calls[key] += 1
        nobody: Message[Any] = Message("nobody", data=1, type="nobody", reply_to="_reply.none")
        return None if key == "good" else nobody

    async def write(state: State) -> None:
        for n in range(BATCH):
            state.put(jobs, f"bad{n}", "x", due=1.0)
        state.put(jobs, "good", "x", due=2.0)

    async with app.connect():
        await transact(app, write)
        timer, began = Timer(jobs, fire, "", 60.0), time.time()
        await timer.look(app)
        await timer.look(app)
        assert calls["good"] == 1
        store: Any = app.bus()
        records = await store.scan("jobs", limit=2 * BATCH)
        assert len(records) == BATCH
        assert min(record.due for record in records) > began
    said = [record.getMessage() for record in caplog.records if "is tried again in" in record.getMessage()]
    assert len(said) == calls.total() - 1


@pytest.mark.parametrize("kind", STORES)
async def test_a_call_that_hangs_holds_back_nothing_that_was_called(kind: str, tmp_path: Path) -> None:
    app, hanging = App("shop", url_of(kind, tmp_path)), asyncio.Event()

    @due(app, jobs, every="20ms")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        if key == "hangs":
            hanging.set()
            await asyncio.Event().wait()
        return fires(key)

    async with receiving(app, fires) as arrived:
        await transact(app, writing(quick=1.0, hangs=2.0))
        await until(lambda: arrived)
        assert hanging.is_set()
        assert list(await kept(app, jobs)) == ["hangs"]


async def test_a_call_that_takes_too_long_is_ended_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, calls = App("shop", url_of("sqlite", tmp_path)), Counter[str]()

    @due(app, jobs, every="20ms", timeout="50ms")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        calls[key] += 1
        if key == "hangs" and calls[key] == 1:
            await asyncio.Event().wait()
        return fires(key)

    async with receiving(app, fires) as arrived:
        await transact(app, writing(hangs=1.0, after=2.0))
        await until(lambda: [message.data for message in arrived] == ["after", "hangs"])
    assert sum("is tried again in" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("kind", STORES)
async def test_a_lease_that_no_clock_of_now_gave_is_not_believed(kind: str, tmp_path: Path) -> None:
    """Its holder died, and its clock was an hour ahead; or this one was set back."""
    app, calls = App("shop", url_of(kind, tmp_path)), list[str]()

    async def fire(key: str, job: str, state: State) -> None:
        calls.append(key)

    async def lease(seconds: float) -> None:
        write = Write("_leases", "shop.jobs.fire", b"another", None, time.time() + seconds, new_version())
        assert not await store.commit([Unit([write])])

    async with app.connect():
        store: Any = app.bus()
        await transact(app, writing(a=1.0))
        await lease(4.5)
        await Timer(jobs, fire, "", 60.0).look(app)
        assert calls == []
        await lease(3600.0)
        await Timer(jobs, fire, "", 60.0).look(app)
        assert calls == ["a"]


# -- an app of several buses that keep records


def two(folder: Path) -> App:
    return App("shop", url_of("sqlite", folder), second=url_of("memory", folder))


async def test_it_looks_where_it_is_told_and_its_messages_leave_for_any_bus(tmp_path: Path) -> None:
    app = two(tmp_path)

    @due(app, jobs, every="20ms", bus="second")
    async def fire(key: str, job: str, state: State) -> Message[str]:
        return fires(key)

    async with receiving(app, fires) as arrived:
        await transact(app, writing(wrong=1.0))
        await transact(app, writing(right=1.0), bus="second")
        await until(lambda: arrived)
        assert [message.data for message in arrived] == ["right"]
        assert list(await kept(app, jobs)) == ["wrong"]


async def test_patterns_look_where_their_handlers_keep_records(tmp_path: Path) -> None:
    app, out, over = two(tmp_path), Topic("out", str, bus="second"), list[str]()
    debounce(app, elsewhere, to=out, quiet="50ms")
    resequencer(app, elsewhere, to=out, by=lambda text: "k", number=lambda text: 7, gap="50ms")

    @aggregator(app, elsewhere, to=out, by=lambda text: "k", timeout="50ms", partial="publish")
    def joined(texts: list[str]) -> str:
        return f"all {texts}"

    manager: ProcessManager[list[str]] = ProcessManager(app, "processes", list[str])

    @manager.on(elsewhere, by=lambda text: text, begins=True)
    async def begin(text: str, process: Process[list[str]]) -> None:
        process.timeout("50ms")

    @manager.timeout
    async def late(process: Process[list[str]]) -> None:
        over.append(process.id)
        process.end()

    history = MessageStore(app, "history", elsewhere)
    async with receiving(app, out) as arrived:
        await app.publish(elsewhere("x", id="one"))
        await until(lambda: len(arrived) == 3 and over)
        assert sorted(message.data for message in arrived) == ["all ['x']", "x", "x"]
        await until(lambda: app.stats()["shop.history-elsewhere"].handled == 1)
        found = await history.get("one")
        assert found is not None
        assert found.body == b"x"


def test_what_cannot_be_called_is_refused() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidHandler, match="async def"):

        @due(app, jobs)
        def fire(key: str, job: str, state: State) -> None: ...

    with pytest.raises(InvalidOption):

        @due(app, jobs, every="1ms")
        async def fire2(key: str, job: str, state: State) -> None: ...

    with pytest.raises(InvalidOption):

        @due(app, jobs, timeout="soon")
        async def fire3(key: str, job: str, state: State) -> None: ...

    with pytest.raises(InvalidName, match="no bus 'secnd'"):

        @due(app, jobs, bus="secnd")
        async def fire4(key: str, job: str, state: State) -> None: ...


async def test_what_it_returns_is_checked_as_a_handlers_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", url_of("memory", tmp_path))

    async def fire(key: str, job: str, state: State) -> Any:
        return 5

    async with app.connect():
        await transact(app, writing(a=1.0))
        await Timer(jobs, fire, "", 60.0).look(app)
        assert list(await kept(app, jobs)) == ["a"]
    assert "returned int, which is no message" in caplog.text
