"""One process of a run: ``python -m tidings.testing.faults.worker '{"role": ...}'``.

A *publisher* publishes its numbers, in batches; SIGTERM ends it after a batch. A *consumer* runs an app with the groups
of the scenario until SIGTERM. Both write what they do to a journal before they go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from tidings import App, Backoff, Delivery, Message, Partial, Reject, Retry, Topic
from tidings.kernel.errors import PublishFailed
from tidings.kernel.settling import Stats
from tidings.kernel.transport import Options
from tidings.transports import _points
from tidings.urls import options_for

from .history import Journal, Line
from .scenario import APP, PLACED, POISONED, Body, Fate, Group, Scenario, Spec, id_of
from .watched import Watched


def main(argument: str) -> None:
    spec = msgspec.json.decode(argument, type=Spec)
    journal = Journal(Path(spec.journal), spec.name)
    logging.basicConfig(level=logging.WARNING, handlers=[Logged(journal)])
    _points.witnesses.append(lambda name: journal.write("point", detail=name))
    if spec.held:
        print("held", flush=True)
        sys.stdin.readline()
    asyncio.run(publish(spec, journal) if spec.role == "publisher" else consume(spec, journal))
    journal.write("stopped")


class Logged(logging.Handler):
    """Warnings and errors are lines of the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.journal.write("log", detail=record.levelname, why=f"{record.getMessage()} {error or ''}"[:500])


def app_of(scenario: Scenario, journal: Journal) -> App:
    options: Options = options_for(scenario.url)
    if scenario.mutant:
        from tidings.testing.conformance.mutants import MUTANTS, MutantOptions

        options = MutantOptions(MUTANTS[scenario.mutant], options)
    backoff = Backoff(attempts=scenario.attempts, first=0.02, factor=2.0, jitter=0.0)
    return App(APP, Watched(options, journal), backoff=backoff, breaker=None)


# -- publishing


async def publish(spec: Spec, journal: Journal) -> None:
    scenario, stopping = spec.scenario, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with app_of(scenario, journal).connect() as app:
        _ready(journal)
        for first in range(spec.first, spec.last, scenario.batch):
            if stopping.is_set():
                return
            await _publish(app, journal, scenario, range(first, min(first + scenario.batch, spec.last)))
            if first // scenario.batch % scenario.burst == 0:
                await asyncio.sleep(scenario.pace * scenario.burst)


async def _publish(app: App, journal: Journal, scenario: Scenario, numbers: Sequence[int]) -> None:
    due = time.time() + scenario.delay
    lines = [Line(what="try", id=id_of(n), key=scenario.key(n), n=n) for n in numbers]
    lines = [replace(line, due=due) if scenario.is_delayed(line.n) else line for line in lines]
    journal.extend(lines)
    try:
        await app.publish_many([draft(scenario, n) for n in numbers])
    except Exception as error:
        accepted = error.accepted if isinstance(error, PublishFailed) else []
        why = repr(error)[:200]
    else:
        accepted, why = list(range(len(lines))), ""
    journal.extend(
        replace(line, what="accepted") if index in accepted else replace(line, what="unknown", why=why)
        for index, line in enumerate(lines)
    )


def draft(scenario: Scenario, n: int) -> Message[Body]:
    meta: dict[str, Any] = {"delay": scenario.delay} if scenario.is_delayed(n) else {}
    if scenario.priorities:
        meta["priority"] = n % scenario.priorities
    return Topic(PLACED, Body)(Body(n, "x" * scenario.size), key=scenario.key(n), id=id_of(n), **meta)


# -- consuming


async def consume(spec: Spec, journal: Journal) -> None:
    scenario = spec.scenario
    app = app_of(scenario, journal)
    for group in scenario.groups:
        player = Player(scenario, group, journal)
        options: dict[str, Any] = {"start": "first"} if scenario.first else {}
        if group.batch:
            options |= {"batch": group.batch, "within": "20ms"}
        register: Callable[[Any], Any] = app.on(
            Topic(group.topic, Body),
            group=group.full,
            ordered=group.ordered,
            concurrency=group.concurrency,
            timeout=group.timeout,
            **options,
        )
        register(player.handler())
    stats: dict[str, Stats] = {}

    def ready() -> None:
        stats.update(app.stats())
        _ready(journal)

    await app.serve(ready)
    for name, told in stats.items():
        if told.fenced:
            journal.write("total", group=name, detail="fenced", n=told.fenced)


class Player:
    """The handler of a group: it writes what it begins and ends, and in between does what the scenario says."""

    def __init__(self, scenario: Scenario, group: Group, journal: Journal) -> None:
        self.scenario, self.group, self.journal = scenario, group, journal
        self.met = Counter[str]()  # how often this process had it in hand

    def handler(self) -> Callable[..., Any]:
        if self.group.thread:
            return self.threaded
        return self.several if self.group.batch else self.chained if self.group.to else self.one

    async def one(self, message: Message[Body], delivery: Delivery) -> None:
        with self._told(message, delivery.attempt):
            await self._play(message, delivery.attempt)

    async def chained(self, message: Message[Body], delivery: Delivery) -> Message[Body]:
        await self.one(message, delivery)
        return Topic(self.group.to, Body)(message.data, key=message.key)

    def threaded(self, message: Message[Body], delivery: Delivery) -> None:
        with self._told(message, delivery.attempt):
            fate, first = self._met(message)
            time.sleep(self.group.takes + fate.blocks * first)
            _raise(fate, delivery.attempt)

    async def several(self, messages: list[Message[Body]]) -> None:
        """Those that fail do so alone."""
        errors: dict[int, BaseException] = {}
        for index, message in enumerate(messages):
            try:
                attempt = self.met[message.id] + 1  # of a list nobody else says
                with self._told(message, attempt):
                    await self._play(message, attempt)
            except (Retry, Reject) as error:
                errors[index] = error
        if errors:
            raise Partial(errors)

    @contextmanager
    def _told(self, message: Message[Body], attempt: int) -> Iterator[None]:
        about = {"group": self.group.full, "id": message.id, "key": message.key, "n": message.data.n}
        self.journal.write("begin", attempt=attempt, **about)
        try:
            yield
        except Reject:
            self.journal.write("reject", attempt=attempt, **about)
            raise
        except BaseException as error:
            self.journal.write("fail", attempt=attempt, why=repr(error)[:200], **about)
            raise
        self.journal.write("end", attempt=attempt, **about)

    def _met(self, message: Message[Body]) -> tuple[Fate, bool]:
        """Its fate, and whether this process meets it for the first time."""
        self.met[message.id] += 1
        return self.scenario.fate(self.group.name, message.data.n), self.met[message.id] == 1

    async def _play(self, message: Message[Body], attempt: int) -> None:
        fate, first = self._met(message)
        if fate.dies:
            self.journal.write("die", group=self.group.full, id=message.id, n=message.data.n)
            os._exit(POISONED)
        if first and fate.blocks:
            time.sleep(fate.blocks)  # noqa: ASYNC251  # that is the fault
        await asyncio.sleep(self.group.takes + fate.hangs * first)
        _raise(fate, attempt)


def _raise(fate: Fate, attempt: int) -> None:
    if fate.rejects:
        raise Reject("the scenario says so")
    if attempt <= fate.fails:
        raise Retry(fate.retry or None)


def _ready(journal: Journal) -> None:
    journal.write("ready")
    print("ready", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
