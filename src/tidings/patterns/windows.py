"""What happened in a stretch of time becomes one message: tumbling, sliding and session windows.

    @windowed(app, readings, Tumbling("5m"), by=lambda r: r.device, time=lambda r: r.at, fold=add, to=averages)
    def average(total: Total, window: Window) -> Average:
        return Average(window.key, total.sum / total.count)

Time is event time: what the messages say. How far it has come, the *watermark*, is the latest time seen, less
``lateness``; a window is over when the watermark has passed its end. So a replay at any speed gives the same windows as
the days in which it happened. Open windows are records, written with the settlement of what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from math import inf, nextafter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.clock import current_clock
from tidings.kernel.codec import Decode, decoder
from tidings.kernel.errors import InvalidOption, WrongReturn
from tidings.kernel.handler import collected
from tidings.kernel.message import Message, derived_id, seconds
from tidings.router import Router
from tidings.state import State, Table
from tidings.timers import due

from ._around import keeping
from ._forward import one_topic
from ._letters import letter
from ._options import checked_key, choices, functions, group_of, often, refuse_unknown, total_type
from ._pattern import describe
from ._windowing import Held, Open, Session, Since, Sliding, Tumbling, Window, beginning, joining, places
from .aggregator import PASSED

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._windows import Closing, Passed

__all__ = ["Session", "Since", "Sliding", "Tumbling", "Window", "windowed"]

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

BATCH, AT_ONCE = 1024, 1000  # messages in a transaction; keys whose windows are looked at together
NEVER, ALL = -inf, inf
REMEMBERED = 10  # times ``idle``: how long a key's watermark outlives its last window
EVER = 5e10  # seconds before and after 1970, the years 385 to 3554: what else a time says was not meant

Over = tuple[float, str, Open, Held]


def windowed(
    app: Router,
    source: Topic[T],
    kind: Tumbling | Sliding | Session | Since,
    /,
    *,
    to: Topic[R],
    fold: Callable[[A | None, T], A],
    by: Callable[[T], str] = lambda payload: "",
    time: Callable[[T], float | datetime] | None = None,
    **options: Unpack[Passed[A]],
) -> Closing[A, R]:
    """Fold the payloads of each key and window, and publish to ``to`` what the function makes of each window's total.

    ``kind``: ``Tumbling("5m")``, ``Sliding("1h", every="5m")``, ``Session(gap="30m")``, ``Since("2d")``. ``fold``: from
    the total, or None, and a payload to the total; its return annotation says how it is kept. ``merge(total, total)``
    joins sessions. ``by``: the key (default: one for all). ``time``: the event time, Unix seconds or a datetime with a
    time zone (default: when the message was published). ``lateness``: how far behind the latest a message may be (0).
    ``late``: what is later still is a ``"drop"`` or a ``"dead"`` letter. ``watermark``: of the whole ``"group"``, or of
    each ``"key"`` its own: where keys go at different paces, or several processes share the work. ``idle``: what is
    open ends when by the wall clock nothing came for so long (never). How far a key of its own watermark has come is
    kept in a record; it is forgotten after ten times ``idle`` without a message, and without ``idle`` never.

    The function gets the total and its ``Window``; the result has its key, and headers ``window-start`` and
    ``window-end`` (ISO 8601). Windows are published by their end, each once, under ids that are always the same.
    ``group``, ``ordered``, ``start``, ``backoff``, ``breaker``: as for an aggregator.

    Raises ``InvalidOption``, ``InvalidHandler``, ``InvalidName``.
    """
    if not isinstance(source, Topic):
        raise InvalidOption(f"windows cannot be made of {source!r}", mend='a topic: Topic("readings", Reading)')
    given: dict[str, Any] = dict(options)
    one_topic(to, "to")
    passed = {name: given.pop(name) for name in PASSED if name in given}
    rules = _rules(kind, given, fold, by, time)

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        group = group_of(app, fn, given.get("group", ""))
        install(app, source, Windows(group, fn, to, rules), passed)
        return fn

    return register  # type: ignore[return-value]


class Rules(Struct, frozen=True, kw_only=True):
    """What a user said, ready for use."""

    find: Callable[[Held, float, float], list[Open]]
    fold: Callable[[Any, Any], Any]
    decode: Decode
    by: Callable[[Any], str]
    time: Callable[[Message[Any]], float]
    lateness: float = 0.0
    late: Literal["drop", "dead"] = "drop"
    per_key: bool = False
    idle: float = 0.0


def _rules(kind: Any, given: dict[str, Any], fold: Any, by: Any, time: Any) -> Rules:
    known = {"merge": None, "lateness": 0.0, "late": "drop", "watermark": "group", "idle": 0.0, "group": ""}
    refuse_unknown(given, known, "a window")
    choices(given, late=("drop", "dead"), watermark=("group", "key"))
    functions(by=by, time=time, merge=given.get("merge"))
    if not callable(fold):
        raise InvalidOption(f"fold cannot be {fold!r}", mend="a function: def add(total, payload) -> Total")
    chosen: dict[str, Any] = known | given
    decode = decoder(total_type(fold))
    if isinstance(kind, Session):
        if chosen["merge"] is None:
            raise InvalidOption(
                "sessions need merge=", why="a late message may join two", mend="merge=lambda a, b: ..."
            )
        find = joining(kind, chosen["merge"], decode)
    elif isinstance(kind, Tumbling | Sliding):
        find = places(kind)
    elif isinstance(kind, Since):
        find = beginning(kind)
    else:
        mend = 'Tumbling("5m"), Sliding("1h", "5m"), Session("30m") or Since("2d")'
        raise InvalidOption(f"{kind!r} is no kind of window", mend=mend)
    return Rules(
        find=find,
        fold=fold,
        decode=decode,
        by=by,
        time=(lambda message: message.time) if time is None else lambda message: _unix(time(message.data), time),
        lateness=seconds(chosen["lateness"], "lateness"),
        late=chosen["late"],
        per_key=chosen["watermark"] == "key",
        idle=seconds(chosen["idle"], "idle"),
    )


def _unix(at: Any, time: Callable[..., Any]) -> float:
    if isinstance(at, datetime) and at.tzinfo is not None:
        return at.timestamp()
    if isinstance(at, int | float) and abs(at) < EVER:
        return float(at)
    what, mend = f"time= returned {at!r:.100}", "return Unix seconds, or a datetime with a time zone"
    raise WrongReturn(what, mend=mend, where=where(time))


class Windows:
    """The windows of one group. ``marks``: the latest time seen, by key, or of the group: ``""``."""

    def __init__(self, group: str, fn: Callable[..., Any], to: Topic[Any], rules: Rules) -> None:
        self.group, self.fn, self.to, self.rules = group, fn, to, rules
        self.table = Table(f"{group}.windows", bytes)
        self.marks = Table(f"{group}.mark", float)

    async def collect(self, messages: Sequence[Message[Any]], state: State) -> list[Message[Any]]:
        """Fold each into its windows, and close what is over then."""
        rules, now, sent = self.rules, current_clock().now(), list[Message[Any]]()
        keyed = [(checked_key(rules.by(message.data)), rules.time(message), message) for message in messages]
        names = {key for key, _, _ in keyed}
        records = await state.get_many(self.table, names)
        held = {key: Held(records.get(key)) for key in names}
        stored = {} if rules.per_key else await state.get_many(self.marks, ("",))
        high = stored.get("", NEVER)
        for key, at, message in keyed:
            mine = held[key]
            windows = rules.find(mine, at, (mine.high if rules.per_key else high) - rules.lateness)
            for window in windows:
                mine.totals[id(window)] = rules.fold(mine.total(window, rules.decode), message.data)
            if not windows and rules.late == "dead":
                sent.append(letter(message, self.group, "late"))
            mine.high = max(mine.high, at)
            high = max(high, at)
        over = self._over(state, held, high - rules.lateness)
        if rules.per_key:
            for key, mine in held.items() if rules.idle else ():
                wait = rules.idle * (1 if mine.open else REMEMBERED)
                state.put(self.marks, key, mine.high, due=now + wait)
        else:
            over += await self._others(state, high - rules.lateness)
            state.put(self.marks, "", high, due=now + rules.idle if rules.idle else None)
        return [*sent, *await self._results(over)]

    async def fired(self, key: str, high: float, state: State) -> list[Message[Any]]:
        """Nothing came for a while: what is open is over, and stays so."""
        if not self.rules.per_key:
            over = await self._others(state, ALL)
            state.put(self.marks, key, max([high, *(self._passing(end) for end, *_ in over)]))
            return await self._results(over)
        mine = Held((await state.get_many(self.table, (key,))).get(key))
        if not mine.open:  # for the second time
            state.delete(self.table, key)
            state.delete(self.marks, key)
            return []
        mine.high = max([mine.high, *(self._passing(window.end) for window in mine.open)])
        state.put(self.marks, key, mine.high, due=current_clock().now() + REMEMBERED * self.rules.idle)
        return await self._results(self._over(state, {key: mine}, ALL))

    def _passing(self, end: float) -> float:
        """The time with which a window is over: the watermark it gives is not before its end, as rounded."""
        high = end + self.rules.lateness
        while high - self.rules.lateness < end:
            high = nextafter(high, inf)
        return high

    async def _others(self, state: State, watermark: float) -> list[Over]:
        """What is over of the keys that are not in hand: they have one watermark."""
        over, limit = list[Over](), AT_ONCE
        while True:
            records = await state.due(self.table, watermark, limit)
            over += self._over(state, {key: Held(record) for key, record in records.items()}, watermark)
            if len(records) < limit:
                return over
            limit *= 2  # what was looked at is read again each time

    def _over(self, state: State, held: dict[str, Held], watermark: float) -> list[Over]:
        """Take out the windows that end by the watermark, and keep the others."""
        over = list[Over]()
        for key, mine in held.items():
            until = mine.high - self.rules.lateness if self.rules.per_key else watermark
            ended = [window for window in mine.open if window.end <= until]
            over += [(window.end, key, window, mine) for window in ended]
            if ended:
                mine.open = [window for window in mine.open if window.end > until]
            if mine.open or self.rules.per_key:
                state.put(self.table, key, mine.record(), due=mine.due)
            else:
                state.delete(self.table, key)
        return over

    async def _results(self, over: list[Over]) -> list[Message[Any]]:
        """What they become, by their end."""
        over.sort(key=lambda each: each[:2])
        return [message for _, key, window, mine in over for message in await self._become(key, window, mine)]

    async def _become(self, key: str, window: Open, mine: Held) -> list[Message[Any]]:
        total = mine.total(window, self.rules.decode)
        result = await collected(self.fn(total, Window(key, window.start, window.end)))
        if result is None:
            return []
        said = (("window-start", _iso(window.start)), ("window-end", _iso(window.end)))
        id = derived_id(f"{key}\0{window.start!r}", self.group, self.to.name, 0)
        return [replace(self.to(result), key=key or None, headers=said, id=id)]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def install(app: Router, source: Topic[Any], found: Windows, passed: dict[str, Any]) -> None:
    """Register what folds, and what looks for times without messages."""

    @wraps(found.fn)
    async def fired(key: str, high: float, state: State) -> list[Message[Any]]:
        return await found.fired(key, high, state)

    collect = keeping(found.fn, found.collect, list[Message[source.type]])  # type: ignore[name-defined]
    for each in (collect, fired):
        describe(each, "windows", publishes=(found.to,))
    app.on(source, batch=BATCH, concurrency=1, group=found.group, **passed)(collect)
    if found.rules.idle:
        every = often(found.rules.idle)
        due(app, found.marks, every=every, group=f"{found.group}-due", bus=source.bus)(fired)
