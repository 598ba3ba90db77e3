"""The relay: in the order of each key whatever fails, and what can never be published is a dead letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.state.stores import url_of
from tests.state.test_handlers import receiving
from tests.transports.consuming import until

from tidings import App, Message, State, Topic, transact
from tidings.kernel.errors import BusError, BusUnavailable, TooLarge
from tidings.kernel.transport import Failure
from tidings.relay import waves
from tidings.transports.memory import Memory

things = Topic("things", int, bus="second")
GROUP = "shop.relay-default-second"

Verdict = Callable[[Sequence[Message[Any]]], "dict[int, Failure]"]


class Parting:
    """A bus in memory that takes a part of what is published at once: all but what ``verdict`` says."""

    def __init__(self, inner: Any, verdict: Verdict) -> None:
        self.inner, self.verdict = inner, verdict

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def capabilities(self) -> Any:
        return replace(self.inner.capabilities, publish_atomic=False)

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        failures = self.verdict(messages)
        await self.inner.publish([message for index, message in enumerate(messages) if index not in failures])
        return [*failures.values()]


class Parted(Memory, frozen=True, kw_only=True):
    verdict: Verdict

    def transport(self) -> Any:
        return Parting(super().transport(), self.verdict)


def failing(kind: Any, error: Exception, once: set[bytes]) -> Verdict:
    """It fails for messages with such bodies, once."""

    def verdict(messages: Sequence[Message[Any]]) -> dict[int, Failure]:
        bad = [index for index, message in enumerate(messages) if message.body in once]
        once.difference_update([messages[index].body for index in bad])
        return {index: Failure(index, kind, error) for index in bad}

    return verdict


async def send(app: App, messages: Sequence[Message[Any]]) -> None:
    async def give(state: State) -> Sequence[Message[Any]]:
        return messages

    await transact(app, give)


def of_key(arrived: Sequence[Message[Any]], key: str | None) -> list[int]:
    return [message.data for message in arrived if message.key == key]


async def test_what_follows_a_failure_of_its_key_waits_for_it(tmp_path: Path) -> None:
    once = {b"0", b"12"}
    app = App(
        "shop", url_of("sqlite", tmp_path), second=Parted(verdict=failing("unknown", BusError("leader moved"), once))
    )
    async with receiving(app, things) as arrived:
        sent = [things(10 * n + i, key=key) for i in range(5) for n, key in enumerate(("a", "b", None))]
        await send(app, sent)
        await until(lambda: len(arrived) == 15)
        assert of_key(arrived, "a") == [0, 1, 2, 3, 4]
        assert of_key(arrived, "b") == [10, 11, 12, 13, 14]
        assert sorted(of_key(arrived, None)) == [20, 21, 22, 23, 24]
        assert (app.stats()[GROUP].dead, app.stats()[GROUP].failed) == (0, 0)
    assert not once


async def test_what_is_never_taken_is_a_dead_letter_at_once_and_its_key_goes_on(tmp_path: Path) -> None:
    parted = Parted(verdict=failing("rejected", TooLarge("too large"), {b"1"}))
    app, letters = App("shop", url_of("sqlite", tmp_path), second=parted), list[int]()

    @app.on("_dead.>")
    async def bury(letter: Message[int]) -> None:
        letters.append(letter.data)

    async with receiving(app, things) as arrived:
        await send(app, [things(n, key="a") for n in range(4)])
        await until(lambda: len(arrived) == 3 and letters)
        assert of_key(arrived, "a") == [0, 2, 3]
        assert (letters, app.stats()[GROUP].dead) == ([1], 1)


async def test_where_all_or_none_is_taken_one_that_is_wrong_takes_no_others_with_it(tmp_path: Path) -> None:
    app = App("shop", url_of("sqlite", tmp_path), second=url_of("memory", tmp_path))
    async with receiving(app, things) as arrived:
        asked = Message("nobody", data=1, type="nobody", bus="second", key="a", reply_to="_reply.none")
        await send(app, [things(0, key="a"), asked, things(1, key="a"), things(2)])
        await until(lambda: len(arrived) == 3 and app.stats()[GROUP].dead == 1)
        assert of_key(arrived, "a") == [0, 1]


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "reports"])
async def test_while_a_bus_is_away_all_waits_for_it(raises: bool, tmp_path: Path) -> None:
    tries, away = 0, True

    def verdict(messages: Sequence[Message[Any]]) -> dict[int, Failure]:
        nonlocal tries
        tries += 1
        error = BusUnavailable("the bus is away")
        if away and raises:
            raise error
        return {index: Failure(index, "rejected", error) for index in range(len(messages))} if away else {}

    app = App("shop", url_of("sqlite", tmp_path), second=Parted(verdict=verdict))
    async with receiving(app, things) as arrived:
        await send(app, [things(n, key="a") for n in range(20)])
        await until(lambda: tries >= 2)
        assert (arrived, app.stats()[GROUP].failed, app.stats()[GROUP].dead) == ([], 0, 0)
        away = False
        await until(lambda: len(arrived) == 20)
        assert of_key(arrived, "a") == [*range(20)]


def test_waves_have_each_key_once_and_all_without() -> None:
    messages: list[Message[Any]] = [Message("t", key=key) for key in ("a", None, "a", "b", None, "a", "b")]
    assert waves(messages) == [[0, 1, 3, 4], [2, 6], [5]]
