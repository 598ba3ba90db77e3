"""Routing slips: where they go, what is undone, and that a process that is killed loses none."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace
from tests.kernel.rig import virtual
from tests.patterns.killing import KINDS, Killing, url_of
from tests.patterns.slip_worker import JOURNAL, STEPS, UNDOABLE, jobs, slips

from tidings import App, Backoff, Message, Reject, Retry, Router, Skip, State, Table, Topic, transact
from tidings.kernel.dead import original_headers
from tidings.kernel.errors import InvalidHandler, InvalidOption
from tidings.patterns import RoutingSlip, Slip, slip_of
from tidings.testing import running


class Trip(Struct):
    n: int
    way: list[str] = []


QUICK = Backoff(attempts=3, first=0.1, factor=2, jitter=0)


class Stage:
    """A slip of three steps that do as ``fates`` says: raise it, or return it; and what was called."""

    def __init__(self, fates: dict[str, Any], router: Router | None = None, **options: Any) -> None:
        self.app = App("travel", "memory://", breaker=None)
        self.slip = RoutingSlip(router or self.app, "trips", Trip, backoff=QUICK)
        self.called: list[str] = []
        for name in ("hotel", "car", "train"):
            self.slip.step(name, group=f"travel.{name}", **options)(self._player(name, fates))
            if name != "train":
                self.slip.compensate(name, group=f"travel.no-{name}")(self._player(f"no-{name}", fates))

    def _player(self, name: str, fates: dict[str, Any]) -> Any:
        async def play(trip: Trip) -> Trip | None:
            self.called.append(name)
            fate = fates.get(name, Trip(trip.n, [*trip.way, name]))
            if callable(fate):
                fate = fate()
            if isinstance(fate, Exception):
                raise fate
            return fate  # type: ignore[no-any-return]

        return play

    async def ends(self, *starts: Message[Trip]) -> list[tuple[str, Slip, Message[Any]]]:
        async with running(self.app) as captured:
            for start in starts:
                await self.app.publish(start)
            await captured.idle(timeout=86_400)
            assert await captured.dead() == []
            found = [
                *await captured.messages(self.slip.completed.name),
                *await captured.messages(self.slip.compensated.name),
            ]
        return [(message.topic, slip_of(message), message) for message in found]


def way(message: Message[Any]) -> list[str]:
    return msgspec.json.decode(message.body, type=Trip).way


@virtual
async def test_each_step_gets_what_the_one_before_returned() -> None:
    stage = Stage({})
    start = stage.slip.start(Trip(1), key="k", headers={"tenant": "x"}, id="mine")
    [(topic, slip, message)] = await stage.ends(start)
    assert topic == "trips.completed"
    assert slip == Slip(done=("hotel", "car", "train"), undo=("car", "hotel"))
    assert way(message) == ["hotel", "car", "train"]
    assert (message.key, message.header("tenant"), message.correlation_id) == ("k", "x", "mine")
    assert message.source == "travel"


@virtual
async def test_the_sender_chooses_steps_and_their_order() -> None:
    stage = Stage({})
    [(_, slip, message)] = await stage.ends(stage.slip.start(Trip(1), ["train", "hotel"]))
    assert slip.done == ("train", "hotel")
    assert way(message) == ["train", "hotel"]


@virtual
async def test_none_passes_on_the_same_payload() -> None:
    stage = Stage({"car": lambda: None})
    [(_, slip, message)] = await stage.ends(stage.slip.start(Trip(1)))
    assert slip.done == ("hotel", "car", "train")
    assert way(message) == ["hotel", "train"]


@virtual
async def test_a_rejected_step_undoes_those_before_in_reverse() -> None:
    stage = Stage({"train": Reject("no seat"), "no-hotel": lambda: None})
    [(topic, slip, message)] = await stage.ends(stage.slip.start(Trip(1)))
    assert stage.called == ["hotel", "car", "train", "no-car", "no-hotel"]
    assert topic == "trips.compensated"
    assert slip == Slip(todo=("train",), done=("hotel", "car"), failed="train", error="Reject: no seat")
    assert way(message) == ["hotel", "car", "no-car"]


@virtual
async def test_a_failing_step_has_all_its_attempts_first() -> None:
    stage = Stage({"car": OSError("busy")})
    [(_, slip, _)] = await stage.ends(stage.slip.start(Trip(1)))
    assert stage.called == ["hotel", "car", "car", "car", "no-hotel"]
    assert (slip.failed, slip.error) == ("car", "OSError: busy")


@virtual
async def test_a_step_that_asks_for_later_is_not_failed() -> None:
    fates = [Retry("2s"), Retry("1h")]
    stage = Stage({"car": lambda: fates.pop() if fates else Trip(7)})
    [(topic, _, _)] = await stage.ends(stage.slip.start(Trip(1)))
    assert topic == "trips.completed"
    assert stage.called == ["hotel", "car", "car", "car", "train"]


@virtual
async def test_a_step_that_takes_too_long_fails_for_good() -> None:
    """The kernel cancels it: there is no exception to see, but one attempt more."""
    stage = Stage({}, timeout="1s")

    @stage.slip.step("slow", timeout="1s", group="travel.slow")
    async def slow(trip: Trip) -> None:
        stage.called.append("slow")
        await asyncio.sleep(100)

    [(_, slip, _)] = await stage.ends(stage.slip.start(Trip(1), ["hotel", "slow"]))
    assert stage.called == ["hotel", "slow", "slow", "slow", "no-hotel"]
    assert slip.failed == "slow"


@virtual
async def test_a_skipped_step_is_neither_done_nor_undone() -> None:
    stage = Stage({"car": Skip("walks"), "train": Reject("no seat")})
    [(_, slip, _)] = await stage.ends(stage.slip.start(Trip(1)))
    assert slip.done == ("hotel",)
    assert stage.called == ["hotel", "car", "train", "no-hotel"]


@virtual
async def test_a_payload_that_a_step_cannot_read_is_undone() -> None:
    stage = Stage({})
    start = stage.slip.start(Trip(1))
    body = b'{"n": "one"}'
    odd: Message[Any] = Message(start.topic, body, type=start.type, headers=start.headers)
    [(topic, slip, message)] = await stage.ends(odd)
    assert (topic, slip.failed, message.body) == ("trips.compensated", "hotel", body)
    assert slip.error.startswith("Undecodable")


@virtual
async def test_a_wrong_return_is_undone() -> None:
    stage = Stage({"car": lambda: 7})
    [(topic, slip, _)] = await stage.ends(stage.slip.start(Trip(1)))
    assert (topic, slip.failed) == ("trips.compensated", "car")


@virtual
async def test_a_compensation_that_fails_for_good_is_a_dead_letter_and_goes_on_when_replayed() -> None:
    broken = [True]
    stage = Stage({"car": Reject("no"), "no-hotel": lambda: OSError("down") if broken else None})
    async with running(stage.app) as captured:
        await stage.app.publish(stage.slip.start(Trip(1)))
        await captured.idle()
        [letter] = await captured.dead("travel.no-hotel")
        assert await captured.messages("trips.compensated") == []
        broken.clear()
        await stage.app.publish(replace(letter, headers=original_headers(letter.headers), address=None))
        await captured.idle()
        [message] = await captured.messages("trips.compensated")
    assert slip_of(message).failed == "car"


@virtual
async def test_a_message_without_a_slip_is_a_dead_letter() -> None:
    stage = Stage({})
    async with running(stage.app) as captured:
        await stage.app.publish(Topic("trips.do.car", Trip)(Trip(1)))
        wrong = stage.slip.start(Trip(1), ["hotel"])
        await stage.app.publish(Message("trips.do.car", data=Trip(1), type=wrong.type, headers=wrong.headers))
        await captured.idle()
        letters = await captured.dead("travel.car")
    assert stage.called == []
    assert ["no routing slip" in letter.header("tdgdetail") for letter in letters] == [True, False]
    assert "does not say 'car'" in letters[1].header("tdgdetail")


@virtual
async def test_steps_may_be_of_a_router_and_of_another_app() -> None:
    router = Router()
    stage = Stage({}, router)
    stage.app.include(router)
    far = RoutingSlip(stage.app, "trips", Trip, elsewhere=["hotel"])
    far.step("bus", group="travel.bus")(stage._player("bus", {}))
    [(topic, slip, message)] = await stage.ends(far.start(Trip(1), ["hotel", "bus"]))
    assert (topic, slip.undo, way(message)) == ("trips.completed", ("hotel",), ["hotel", "bus"])


@virtual
async def test_a_handler_stays_what_it_is_and_takes_what_handlers_take() -> None:
    stage, seen = Stage({}), list[str]()

    @stage.slip.step("plane", run="loop")
    def plane(trip: Trip, message: Message[Trip]) -> Trip:
        seen.append(message.id)
        return trip

    assert plane(Trip(3), stage.slip.start(Trip(3))) == Trip(3)
    await stage.ends(stage.slip.start(Trip(1), ["plane"], id="flight"))
    assert seen == ["", "flight"]


@virtual
async def test_steps_keep_records_and_a_failed_one_has_kept_none() -> None:
    app, rooms = App("travel", "memory://"), Table("rooms", int)
    slip = RoutingSlip(app, "trips", Trip, backoff=QUICK)

    async def take(state: State, count: int) -> None:
        state.put(rooms, "free", (await state.get(rooms, "free") or 0) - count)

    @slip.step("hotel")
    async def hotel(trip: Trip, state: State) -> None:
        await take(state, 1)

    @slip.compensate("hotel")
    async def no_hotel(trip: Trip, state: State) -> None:
        await take(state, -1)

    @slip.step("spa")
    async def spa(trip: Trip, state: State) -> None:
        await take(state, 10)
        if trip.n > 1:
            raise (Skip, Reject, OSError)[trip.n - 2]("closed")

    async with running(app) as captured:
        await app.publish_many([slip.start(Trip(n)) for n in (1, 2, 3, 4)])
        await captured.idle()
        assert await captured.dead() == []
        assert len(await captured.messages("trips.completed")) == 2
        assert len(await captured.messages("trips.compensated")) == 2

        async def look(state: State) -> None:
            assert await state.get(rooms, "free") == -1 - 1 - 10

        await transact(app, look)


def test_what_cannot_be_is_refused() -> None:
    stage = Stage({})
    slip = stage.slip
    with pytest.raises(InvalidOption, match="no step 'hotle'") as caught:
        slip.start(Trip(1), ["hotle"])
    assert "did you mean 'hotel'?" in caught.value.mend
    for steps in ([], ["hotel"] * 65):
        with pytest.raises(InvalidOption, match="does not fit"):
            slip.start(Trip(1), steps)
    with pytest.raises(InvalidOption, match="cannot expire"):
        slip.start(Trip(1), expires="1h")

    async def again(trip: Trip) -> None: ...
    async def stream(trip: Trip) -> Any:
        yield trip

    for register in (slip.step("hotel"), slip.step("a b"), slip.compensate("hotel"), slip.compensate("ship")):
        with pytest.raises(InvalidHandler, match="again") as wrong:
            register(again)
        assert __file__ in wrong.value.where
    with pytest.raises(InvalidHandler, match="one payload"):
        slip.step("stream")(stream)


def test_a_slip_is_pure_data() -> None:
    slip = Slip(todo=("a", "b", "c"))
    assert slip.next == "do.a"
    slip = slip.passed(True).passed(False)
    assert (slip.next, slip.undo, slip.done) == ("do.c", ("a",), ("a", "b"))
    slip = slip.gave_up("x" * 1000)
    assert (slip.next, slip.failed, len(slip.error)) == ("undo.a", "c", 300)
    assert slip.undone().next == "compensated"
    assert Slip(todo=("a",)).skipped().next == "completed"


# -- kill -9


class AtAnyMoment(Killing):
    """For buses that have no named points of a transaction."""

    async def _die(self) -> None:
        await self._once(self.luck.uniform(0.0, 0.25))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [*KINDS, "nats"])
async def test_whatever_is_killed_each_slip_ends_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NATS, which is not atomic, outputs come again under the same id, and are stored once."""
    how = Killing if kind in KINDS else AtAnyMoment
    each = {"sqlite": 12, "postgres": 4}.get(kind, 100)
    monkeypatch.setenv(JOURNAL, str(tmp_path / "journal"))
    started: list[str] = []

    async def feed(number: int) -> None:
        new = jobs([f"{number}-{n}" for n in range(each)], len(started))
        started.extend(job.name for job in new)
        await killing.app.publish_many(trips.start(job, STEPS, id=job.name, key=job.name[-1]) for job in new)

    async def ends() -> list[Message[Any]]:
        return [*await killing.log(trips.completed.name), *await killing.log(trips.compensated.name)]

    async def done() -> bool:
        return await killing.idle() and len(await ends()) >= len(started)

    async with how("tests.patterns.slip_worker", url_of(kind, tmp_path)) as killing:
        trips = slips(killing.app)
        await killing.rounds(feed, done, ends)
        found, letters = await ends(), await killing.log("_dead.>")
    assert letters == []
    assert Counter(end.correlation_id for end in found) == Counter(started)
    judge(found, (tmp_path / "journal").read_text().splitlines())


def judge(ends: list[Message[Any]], told: list[str]) -> None:
    """What was done and undone is what the outcome says, in that order."""
    first = dict[tuple[str, str], int]()
    for index, line in enumerate(told):
        what, name = line.split()
        first.setdefault((name, what), index)
    assert len(Counter(end.topic for end in ends)) == 2
    for end in ends:
        name, slip = str(end.correlation_id), slip_of(end)
        assert all((name, f"do-{step}") in first for step in slip.done)
        undone = [step for step in reversed(UNDOABLE) if (name, f"undo-{step}") in first]
        expected = [step for step in reversed(slip.done) if step in UNDOABLE] if slip.failed else []
        assert undone == expected, (name, slip, undone)
        order = [first[name, f"undo-{step}"] for step in undone]
        assert order == sorted(order)
        assert slip.failed or slip.done == tuple(STEPS)
