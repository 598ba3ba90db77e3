"""From a declared handler to one that runs: its compiled form, its subscription, its worker."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from . import requests
from .executors import Executor, Processes, Threads
from .inject import Function, Plan, Recipe, Values, caller, invoker, plan
from .keeping import Keeper
from .kernel.bus import Bus
from .kernel.codec import Decode, decoder
from .kernel.errors import Unsupported
from .kernel.handler import (
    Handler,
    Middleware,
    One,
    Origin,
    Outcome,
    Outgoing,
    batch,
    emitter,
    full,
    lean,
    wrapped,
)
from .kernel.outcome import Backoff, Breaker
from .kernel.settling import Policy
from .kernel.topics import TICK, token
from .kernel.transport import Delivery, Subscription
from .kernel.worker import Work, Worker
from .relay import Way, choose
from .router import Registration, refuse_dependencies
from .state import State
from .together import Together

LOOP, THREADS = 16, 8  # concurrency, unless given


class Defaults(Struct, frozen=True, kw_only=True):
    """What an app gives to all its handlers."""

    app: str
    backoff: Backoff
    breaker: Breaker | None
    grace: float
    middleware: tuple[Middleware, ...]
    provided: Mapping[type, Any]
    overrides: Mapping[Function, Function]
    buses: Mapping[str, Bus]


class Assembly:
    """One handler of an open app."""

    def __init__(self, registration: Registration, group: str, defaults: Defaults) -> None:
        self.registration, self.group, self.defaults = registration, group, defaults
        self.bus = defaults.buses[registration.bus]
        self.executor: Executor | None = None
        r = registration
        self.origin = Origin(
            name=r.fn.__qualname__,
            where=r.where,
            source=defaults.app,
            group="" if r.live else group,
            to=r.to,
            limit=self.bus.limit,
            buses=tuple(defaults.buses),
        )
        self.plan = self._plan()
        refuse_dependencies(registration, self.plan)
        layers = (*defaults.middleware, *r.middleware)
        self.layers = [m for m in layers if not (r.live and hasattr(m, "keeping"))]  # a live copy settles nothing
        self.keeper = self._keeper() if self.plan.keeps or any(hasattr(m, "keeping") for m in self.layers) else None

    def _plan(self) -> Plan:
        r, defaults = self.registration, self.defaults
        return plan(
            r.fn,
            template=r.template,
            type=r.type,
            batch=r.batch > 0,
            payload=r.role != "tick",
            provided=defaults.provided if r.run != "process" else {},
            overrides=defaults.overrides,
        )

    def _keeper(self) -> Keeper:
        """What lets it keep records: on its own bus, or else on another of the app's. Raises ``Unsupported``."""
        r, buses, where = self.registration, self.defaults.buses, self.registration.where
        name, store = choose(buses, lambda name: buses[name].transport, r.bus, where)
        if r.role == "answer" and name != r.bus:
            what, mend = f"{r.fn.__qualname__}() answers on a bus without records", "serve it on the bus that has them"
            raise Unsupported(what, why="a reply cannot wait in a store", mend=mend, where=where)
        return Keeper(self.group, store, Way(self.defaults.app, name), self.bus.clock)

    @property
    def decode(self) -> Decode:
        if self.plan.takes == "nothing":
            return lambda body, content_type: None
        return decoder(self.plan.type, lax=self.registration.lax)

    @property
    def concurrency(self) -> int:
        default = {"loop": LOOP, "thread": THREADS, "process": os.cpu_count() or 1}
        return self.registration.concurrency or default[self.registration.run]

    def handler(self, values: Values) -> Handler:
        """Its compiled form, with its executor started if it has one."""
        r, plan_, now, keeper = self.registration, self.plan, self.bus.clock.now, self.keeper
        emit = emitter(self.origin, now)
        values = {**values, State: keeper.state_of} if keeper else values
        if r.run != "loop":
            made = self._executed(values)
        elif r.role == "answer":
            made = Handler(one=self._answerer(values))
        elif r.batch:
            make = partial(keeper.batch, name=plan_.state) if keeper and plan_.state else batch
            many = make(r.fn, decode=self.decode, emit=emit, whole=plan_.takes == "message")
            made = Handler(many=many, limit=lambda: r.batch, batch=True)
        elif plan_.plain and inspect.iscoroutinefunction(r.fn):
            made = Handler(one=lean(r.fn, self.decode, emit))
        else:
            made = Handler(one=full(invoker(r.fn, plan_, self.decode, values), emit))
        if keeper is not None:
            layers = [layer.keeping(keeper) if hasattr(layer, "keeping") else layer for layer in self.layers]
            return keeper.around(wrapped(made, layers, self.origin))
        made = wrapped(made, self.layers, self.origin)
        made = self._routed(made) if len(self.defaults.buses) > 1 else made
        apart = made.batch and not self.bus.transport.capabilities.atomic_settle
        return Together().around(made) if apart else made

    def _answerer(self, values: Values) -> One:
        """Past its deadline it says so to who asked, so the worker's own deadline must come later."""
        r = self.registration
        one = requests.answer(r.fn, self.plan, self.decode, values, self.bus, self.origin)
        return requests.in_time(one, r.timeout, self.bus, self.origin.source)

    def _routed(self, handler: Handler) -> Handler:
        """Outputs to another bus are published first, then the input is settled: at least once."""
        own, buses, inner, many = self.bus.name, self.defaults.buses, handler.one, handler.many

        async def send(outgoing: Outgoing) -> Outgoing:
            mine = tuple(message for message in outgoing if message.bus == own or message.address)  # or a reply
            for name in {message.bus for message in outgoing if message not in mine}:
                await buses[name].publish([m for m in outgoing if m.bus == name and m not in mine])
            return mine

        async def one(delivery: Delivery) -> Outgoing:
            outgoing = await inner(delivery)  # type: ignore[misc]
            return await send(outgoing) if outgoing else ()

        async def several(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            outcomes = list(await many(deliveries))  # type: ignore[misc]
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, tuple) and outcome:
                    try:
                        outcomes[index] = await send(outcome)
                    except Exception as error:
                        if handler.batch and len(deliveries) > 1:
                            raise  # they are of all: each runs again
                        outcomes[index] = error
            return outcomes

        return replace(handler, one=one if inner else None, many=several if many else None)

    def _executed(self, values: Values) -> Handler:
        r, answers = self.registration, self.registration.role == "answer"
        emits = requests.reply_emitter if answers else emitter
        if r.run == "process":
            recipe = Recipe(
                fn=r.fn,
                template=r.template,
                type=r.type,
                lax=r.lax,
                origin=self.origin,
                emitter=emits,
                overrides=dict(self.defaults.overrides),
            )
            executor: Executor = Processes(recipe, self.concurrency, r.timeout)
        else:
            call = caller(r.fn, self.plan, self.decode, emits(self.origin, self.bus.clock.now), values)
            executor = Threads(call, self.concurrency, self.group)
        self.executor = executor
        many = requests.answering(executor, self.bus, self.origin.source) if answers else executor
        return Handler(many=many, limit=executor.limit, cancellable=False)

    async def worker(self, values: Values) -> Worker:
        """Its subscription at the bus, and the worker that works it, not yet running."""
        r, defaults = self.registration, self.defaults
        once = r.live or r.role == "answer"
        pattern = TICK + self.group if r.role == "tick" else r.pattern
        subscription = Subscription(
            app=defaults.app,
            pattern=pattern,
            group=None if r.live else self.group,
            start=r.start,
            ordered=r.ordered,
            concurrency=self.concurrency,
            timeout=r.timeout,
        )
        backoff = Backoff(attempts=1) if once else r.backoff or defaults.backoff
        policy = Policy(group=self.group, ordered=r.ordered, once=once, backoff=backoff)
        concurrency = 1 if r.role == "tick" else self.concurrency
        work = Work(
            policy=policy,
            concurrency=concurrency,
            within=r.within,
            timeout=2 * r.timeout if r.role == "answer" else r.timeout,
            grace=defaults.grace,
        )
        breaker = defaults.breaker if r.breaker == "default" else r.breaker
        fresh = None if breaker is None or once else replace(breaker, buckets=[])
        return await self.bus.subscribe(subscription, self.handler(values), work, fresh, r.where)


def group_of(registration: Registration, app: str) -> str:
    """The name of a handler's durable subscription."""
    return registration.group or f"{app}.{token(registration.fn.__name__)}"
