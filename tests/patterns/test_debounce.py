"""Debouncing: what is passed on, when, and that what waits outlives its process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.kernel.rig import virtual
from tests.patterns import debounce_worker as worker
from tests.patterns.killing import KINDS, Killing, url_of
from tests.transports.consuming import until

from tidings import App, Message, Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import InvalidOption
from tidings.patterns import debounce
from tidings.testing import running


class Edit(Struct):
    n: int


edits, settled = Topic("edits", Edit), Topic("settled", Edit)


def watch(app: App) -> list[tuple[int, float]]:
    """What is passed on, and when, in seconds since now."""
    began, came = current_clock().now(), list[tuple[int, float]]()

    @app.on(settled)
    async def save(edit: Edit) -> None:
        came.append((edit.n, round(current_clock().now() - began, 0)))

    return came


@virtual
async def test_the_last_of_each_key_after_a_quiet_time() -> None:
    app = App("pad", "memory://")
    debounce(app, edits, to=settled, quiet="10s")
    came = watch(app)
    async with running(app) as captured:
        for n in range(20):
            await app.publish_many([edits(Edit(n), key="a"), edits(Edit(100 + n // 10)), edits(Edit(n + 200), key="")])
            await asyncio.sleep(1)
        await asyncio.sleep(60)
        for n in range(3):
            await app.publish(edits(Edit(300 + n), key="a"))
        await asyncio.sleep(60)
        assert await captured.dead() == []
    assert sorted(came) == [(19, 29), (101, 29), (219, 29), (302, 90)]


@virtual
async def test_a_burst_without_end_is_passed_on_from_time_to_time() -> None:
    app = App("pad", "memory://")
    debounce(app, edits, to=settled, quiet="3s", at_most="10s")
    came = watch(app)
    async with running(app):
        for n in range(25):
            await app.publish(edits(Edit(n), key="a"))
            await asyncio.sleep(1)
        await asyncio.sleep(30)
    assert [at for _, at in came] == [10, 21, 27]
    assert came[-1][0] == 24


@virtual
async def test_the_last_is_the_one_that_was_published_last() -> None:
    app = App("pad", "memory://")
    debounce(app, edits, to=settled, quiet="1s")
    came = watch(app)
    async with running(app) as captured:
        for n, time in ((1, 20.0), (2, 10.0)):
            await app.publish(Message("edits", data=Edit(n), id=f"m{n}", key="a", type="edits", time=time))
            await captured.idle()
        await asyncio.sleep(5)
        [message] = await captured.messages("settled")
    assert [n for n, _ in came] == [1]
    assert (message.key, message.causation_id, message.source) == ("a", "m1", "pad")


@virtual
async def test_what_is_passed_on_is_what_came() -> None:
    app = App("pad", "memory://")
    debounce(app, edits, to=settled, quiet="1s")
    body = b'{"n": 1, "more": [1, 2]}'
    async with running(app) as captured:
        odd: Message[Any] = Message("edits", body, key="k\u00e9", type="edits", headers=(("a", "\u00fc"),), priority=3)
        await app.publish(odd)
        await asyncio.sleep(5)
        [message] = await captured.messages("settled")
    assert (message.body, message.key, message.headers, message.priority) == (body, "k\u00e9", (("a", "\u00fc"),), 3)


@pytest.mark.slow  # the timers of a process that went away are taken over after 5 s
async def test_what_waits_outlives_its_process(tmp_path: Path) -> None:
    def new_app() -> App:
        app = App("pad", f"sqlite:///{tmp_path}/pad.db")
        debounce(app, edits, to=settled, quiet="1s", every="20ms")
        return app

    async with new_app() as app:
        await app.publish_many([edits(Edit(n), key=f"k{n % 10}") for n in range(500)])
        await until(lambda: app.stats()["pad.debounce_edits"].handled == 500)
        bus: Any = app.bus()
        early = len(await bus.peek("settled", limit=1000))
    came: list[int] = []
    last = new_app()

    @last.on(settled, start="first")
    async def save(edit: Edit) -> None:
        came.append(edit.n)

    async with last:
        await until(lambda: len(came) >= 10)
        bus = last.bus()
        await until(lambda: len(came) == 10)
    assert early <= 10
    assert sorted(came) == list(range(490, 500))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_is_killed_the_last_of_each_burst_is_passed_on(kind: str, tmp_path: Path) -> None:
    last: dict[str, int] = {}

    async def feed(number: int) -> None:
        drafts = [worker.edits(n, key=f"{number}-{k}") for n in range(3) for k in range(10)]
        last.update({f"{number}-{k}": 2 for k in range(10)})
        await killing.app.publish_many(drafts)

    async def done() -> bool:
        return {message.key: int(message.body) for message in await killing.log("settled")} == last

    async with Killing("tests.patterns.debounce_worker", url_of(kind, tmp_path)) as killing:
        await killing.rounds(feed, done, killing.idle)
        found, letters = await killing.log("settled"), await killing.log("_dead.>")
    assert letters == []
    causes = [message.causation_id for message in found]
    assert len(set(causes)) == len(causes), "one was passed on twice"


def test_what_cannot_be_is_refused() -> None:
    app = App("pad", "memory://")
    with pytest.raises(InvalidOption, match="shorter than quiet"):
        debounce(app, edits, to=settled, quiet="10s", at_most="5s")
    with pytest.raises(InvalidOption, match="to cannot be"):
        debounce(app, edits, to=Topic("settled.{x}", Edit), quiet="10s")
    with pytest.raises(InvalidOption, match="quiet cannot be"):
        debounce(app, edits, to=settled, quiet="soon")
