"""Declaring handlers: ``@on``, ``@answer``, ``@every``, ``@cron``. What is wrong is refused here, at its line."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from msgspec import Struct

from .channels import Service, Topic
from .executors import check_importable
from .inject import Plan, plan, where
from .kernel.codec import decoder
from .kernel.errors import Duration, InvalidHandler, InvalidOption, nearest
from .kernel.handler import Middleware
from .kernel.message import seconds
from .kernel.outcome import Backoff, Breaker
from .kernel.topics import REQUEST, check_pattern, check_topic, refuse_reserved

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._decorators import Answer, Durable, Into, IntoMaybe, Live, On, OnBatch, Same

T = TypeVar("T")
U = TypeVar("U")
Q = TypeVar("Q")
R = TypeVar("R")
P = ParamSpec("P")

Role = Literal["on", "answer", "tick"]

INJECTABLE: dict[type, Any] = {}  # what an open app injects by type, as far as signatures need to know


class Registration(Struct, frozen=True, kw_only=True):
    """One declared handler: a function, what it listens to, and how it shall run."""

    fn: Callable[..., Any]
    plan: Plan
    role: Role
    template: str  # what was declared, captures and all
    pattern: str  # the same for the bus
    bus: str = ""
    type: Any = Any
    reply: Any = None  # of an answerer
    lax: bool = False
    to: Topic[Any] | None = None
    group: str = ""
    live: bool = False
    start: float | None = None
    ordered: bool = False
    concurrency: int = 0  # 0: the default of its ``run``
    batch: int = 0
    within: float = 0.0
    run: Literal["loop", "thread", "process"] = "loop"
    timeout: float = 3600.0
    backoff: Backoff | None = None
    breaker: Breaker | Literal["default"] | None = "default"
    middleware: tuple[Middleware, ...] = ()
    schedule: Any = None  # of a tick
    each: bool = False

    @property
    def where(self) -> str:
        return where(self.fn)


class Router:
    """Handlers of one module, for ``app.include(router)``."""

    def __init__(self) -> None:
        self.registrations: list[Registration] = []

    def include(self, router: Router) -> None:
        """Take over all handlers of a router."""
        if not isinstance(router, Router):
            raise InvalidOption(f"{router!r} is no Router", mend="app.include(module.router)")
        for registration in router.registrations:
            self.add(registration)

    def add(self, registration: Registration) -> None:
        """Take over one declared handler."""
        self.registrations.append(registration)

    @overload
    def on(self, topic: Topic[T], /, **options: Unpack[Durable]) -> On[T]: ...
    @overload
    def on(self, topic: Topic[T], /, *, live: Literal[True], **options: Unpack[Live]) -> On[T]: ...
    @overload
    def on(
        self, topic: Topic[T], /, *, batch: int, within: Duration = ..., **options: Unpack[Durable]
    ) -> OnBatch[T]: ...
    @overload
    def on(self, topic: Topic[T], /, *, to: Topic[U], **options: Unpack[Durable]) -> IntoMaybe[T, U]: ...
    @overload
    def on(self, pattern: str, /, *, live: Literal[True], **options: Unpack[Live]) -> Same: ...
    @overload
    def on(self, pattern: str, /, *, batch: int = ..., within: Duration = ..., **options: Unpack[Durable]) -> Same: ...
    @overload
    def on(self, pattern: str, /, *, to: Topic[U], **options: Unpack[Durable]) -> IntoMaybe[Any, U]: ...
    def on(self, source: Topic[Any] | str, /, **options: Any) -> Any:
        """Subscribe a function to a topic or pattern.

        ``group``: the durable subscription's name (default ``"<app>.<function>"``); ``live``: no group, each process
        its own copy, at most once. ``start``: where a new group begins: ``"first"``, a datetime, or ``"-1h"``
        (default: new messages). ``ordered``: key order across all processes. ``concurrency``: handlers at once (16;
        threads 8; processes: the cores). ``batch``, ``within``: call it with lists. ``run``: ``"loop"`` (default for
        ``async def``), ``"thread"`` (default for ``def``), ``"process"``. ``to``: it returns payloads of that topic.
        ``timeout`` (1 h), ``backoff``, ``breaker`` (None: off), ``middleware``; ``bus``: only with a pattern.

        Raises ``InvalidHandler``, ``InvalidOption``, ``InvalidName``; what the bus cannot do is refused at start-up.
        """
        if isinstance(source, Topic):
            if "bus" in options:
                raise InvalidOption("bus= goes with a pattern", mend=f"Topic({source.name!r}, ..., bus=...)")
            declared = {name: getattr(source, name) for name in ("template", "pattern", "bus", "lax", "type")}
            return lambda fn: self._register(fn, "on", declared, options)
        if callable(source):
            raise InvalidHandler("@app.on was not told what to listen to", mend="@app.on(topic), above the handler")
        pattern = check_pattern(source)
        if not pattern.startswith("_dead."):
            refuse_reserved(pattern)
        return lambda fn: self._register(fn, "on", {"template": source, "pattern": pattern}, options)

    @overload
    def answer(self, service: Service[Q, R], /, **options: Unpack[Answer]) -> Into[Q, R]: ...
    @overload
    def answer(self, name: str, /, **options: Unpack[Answer]) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def answer(self, service: Service[Any, Any] | str, /, **options: Any) -> Any:
        """Answer a service's requests; all answerers of a service compete. An async generator streams many replies.

        It runs once: an exception is an error reply, not a retry. Options as in ``on``, without groups.
        """
        named = service if isinstance(service, Service) else None
        name = named.name if named else refuse_reserved(check_topic(str(service)))
        declared: dict[str, Any] = {"template": name, "pattern": REQUEST + name, "group": name}
        if named:
            declared |= {"bus": named.bus, "lax": named.lax, "type": named.request, "reply": named.reply}
        return lambda fn: self._register(fn, "answer", declared, options)

    def every(self, interval: Duration, /, *, each: bool = False, bus: str = "", group: str = "") -> Same:
        """Call a function at an interval. One replica is chosen for each tick, which is then a message like any other
        (retries, dead letters); missed ticks coalesce into one. ``each``: on every replica, at most once."""
        from .schedule import Interval

        return self._tick(Interval(seconds(interval, "interval")), each, bus, group)

    def cron(self, expression: str, /, *, tz: str = "UTC", each: bool = False, bus: str = "", group: str = "") -> Same:
        """Call a function at the times of a cron expression, in the time zone ``tz`` (IANA name). As ``every``."""
        from .schedule import Cron

        return self._tick(Cron(expression, tz), each, bus, group)

    def _tick(self, schedule: Any, each: bool, bus: str, group: str) -> Same:
        declared = {"template": "", "pattern": "", "schedule": schedule, "each": each, "bus": bus, "group": group}
        return cast("Same", lambda fn: self._register(fn, "tick", declared, {}))

    def _register(self, fn: Any, role: Role, declared: dict[str, Any], options: dict[str, Any]) -> Any:
        if not hasattr(fn, "__qualname__"):
            what, mend = f"{fn!r} has no name to call its group by", "write a function that calls it"
            raise InvalidHandler(what, mend=mend)
        given = _checked(fn, role, options)
        kind = declared.get("type", Any)
        template, payload = declared["template"], role != "tick"
        provided = {} if given.get("run") == "process" else INJECTABLE
        found = plan(fn, template=template, type=kind, batch="batch" in given, payload=payload, provided=provided)
        if payload:
            decoder(found.type, lax=declared.get("lax", False))
        given.setdefault("run", "loop" if is_async(fn) or given.get("batch") else "thread")
        registration = Registration(fn=fn, plan=found, role=role, **{**declared, **given})
        _refuse_contradictions(registration)
        self.add(registration)
        return fn


def is_async(fn: Any) -> bool:
    """Whether a function is written with ``async def``."""
    fn = fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004
    return inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn)


_OPTIONS = "group live start ordered concurrency batch within run to timeout backoff breaker middleware bus"
_CHOICES: dict[Role, frozenset[str]] = {
    "on": frozenset(_OPTIONS.split()),
    "answer": frozenset(["concurrency", "run", "timeout", "middleware", "bus"]),
    "tick": frozenset(),
}


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("concurrency", "batch"), (lambda v: isinstance(v, int) and v >= 1, "a number, at least 1")),
    "run": (lambda v: v in ("loop", "thread", "process"), "'loop', 'thread' or 'process'"),
    "backoff": (lambda v: isinstance(v, Backoff), "Backoff(attempts=5); Backoff(attempts=1) tries nothing again"),
    "breaker": (lambda v: isinstance(v, Breaker | None), "Breaker(ratio=0.9), or None: off"),
    "middleware": (lambda v: isinstance(v, list | tuple) and all(map(callable, v)), "a list of functions"),
    "to": (lambda v: isinstance(v, Topic | None), 'Topic("orders.billed", Order)'),
}


def _checked(fn: Any, role: Role, options: dict[str, Any]) -> dict[str, Any]:
    """Options as ``Registration`` has them; raises ``InvalidOption`` with the nearest name."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _CHOICES[role]:
            raise InvalidOption(f"@{role} has no option {name!r}", mend=nearest(name, _CHOICES[role]), where=where(fn))
        check_option(name, value, where(fn))
        given[name] = _READ[name](value) if name in _READ else value
    return given


def check_option(name: str, value: Any, where: str = "") -> None:
    """Raises ``InvalidOption`` for a value that an option cannot have."""
    good, mend = _VALUES.get(name, (lambda _: True, ""))
    if not good(value):
        raise InvalidOption(f"{name} cannot be {value!r}", mend=mend, where=where)


def start_time(value: Any) -> float:
    """Where a group begins, as Unix seconds: ``"first"`` is 0; ``"-1h"`` counts back from now."""
    if value == "first":
        return 0.0
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    if isinstance(value, str) and value.startswith("-"):
        return time.time() - seconds(value[1:], "start")
    raise InvalidOption(f"start cannot be {value!r}", mend="'first', '-1h', or a datetime with a time zone")


_READ: dict[str, Callable[[Any], Any]] = {"start": start_time, "middleware": tuple, "group": check_topic}
_READ |= {name: partial(seconds, name=name) for name in ("timeout", "within")}


def _refuse_contradictions(r: Registration) -> None:
    def refuse(what: str, mend: str) -> InvalidHandler:
        return InvalidHandler(f"{r.fn.__qualname__}(): {what}", mend=mend, where=r.where)

    if r.live and (r.group or r.ordered or r.start is not None or r.batch or r.to or r.backoff):
        raise refuse("a live subscription has no group, start, order, batch, to or backoff", "drop live=True, or those")
    if r.run != "loop" and is_async(r.fn):
        raise refuse(f"an async function cannot run in a {r.run}", "write it as a plain def, or drop run=")
    if r.batch and (r.run != "loop" or r.to):
        raise refuse("a batch handler runs on the loop and returns messages", "drop run= and to=")
    if r.within and not r.batch:
        raise refuse("within= goes with batch=", "give batch=")
    if r.to is not None and not r.to.publishable:
        raise refuse(f"to={r.to.name!r} is no single topic", "return topic.bind(...)(payload) instead of using to=")
    if r.plan.keeps and (r.live or not is_async(r.fn)):
        raise refuse("a state goes with settlements, and is read by awaiting", "write it with async def, without live=")
    if r.run == "process":
        check_importable(r.fn)
    refuse_dependencies(r, r.plan)


def refuse_dependencies(r: Registration, found: Plan) -> None:
    """Refuse what a thread or a process cannot call; again at opening, when overrides are known."""
    for dependency in found.dependencies if r.run != "loop" else ():
        scoped = dependency.scope == "app"
        if (r.run == "process" and scoped) or (dependency.is_async and not scoped):
            kind = "a dependency of the app" if scoped else "an async dependency"
            mend = "make the handler async, or the dependency plain" + ("" if r.run == "process" else " or scope='app'")
            raise InvalidHandler(f"{r.fn.__qualname__}(): {kind} cannot run in a {r.run}", mend=mend, where=r.where)
