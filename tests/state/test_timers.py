"""What is due is called once, by one replica at a time, and is not lost with a failure or a process."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.state.stores import STORES, url_of
from tests.state.test_handlers import kept, receiving
from tests.transports.consuming import until

from tidings import App, Message, State, Table, Topic, due, transact
from tidings.kernel.errors import InvalidHandler, InvalidOption
from tidings.store import Unit, Write, new_version

fires: Topic[str] = Topic("fires", str)
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


def test_what_cannot_be_called_is_refused() -> None:
    app = App("shop", "memory://")
    with pytest.raises(InvalidHandler, match="async def"):

        @due(app, jobs)
        def fire(key: str, job: str, state: State) -> None: ...

    with pytest.raises(InvalidOption):

        @due(app, jobs, every="1ms")
        async def fire2(key: str, job: str, state: State) -> None: ...
