"""Putting observers around handlers, and what they are told of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tidings import App, Backoff, Delivery, Message, Reject, Retry, Router, Topic
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.transport import Session
from tidings.middleware import Group, instrument

from .observed import settled

billed = Topic("orders.billed", int)


class Watcher:
    """Notes who was handled inside what."""

    def __init__(self, name: str, seen: list[str], group: Group = Group()) -> None:  # noqa: B008
        self.name, self.seen, self.group = name, seen, group

    def of(self, group: Group) -> Watcher:
        return Watcher(self.name, self.seen, group)

    def attach(self, app: Any) -> None:
        self.seen.append(f"{self.name} watches {app.name}")

    def __call__(self, one: One) -> One:
        async def watched(delivery: Delivery) -> Outgoing:
            self.seen.append(f"{self.name} {self.group.name}")
            return await one(delivery)

        return watched

    def many(self, many: Many) -> Many:
        async def watched(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            self.seen.append(f"{self.name} {self.group.name} batch")
            return await many(deliveries)

        return watched


async def test_around_every_handler_also_those_declared_later() -> None:
    seen: list[str] = []
    app, router = App("shop", "memory://", middleware=(Watcher("app's", seen),)), Router()

    @app.on(billed, middleware=(Watcher("own", seen),))
    async def first(n: int) -> None: ...

    instrument(app, Watcher("outer", seen), Watcher("inner", seen))

    @app.on(billed, batch=1)
    async def second(ns: list[int]) -> None: ...

    @router.on(billed, group="third")
    def any_name(n: int) -> None: ...

    app.include(router)
    async with app:
        await app.publish(billed, 1)
        for group in ("shop.first", "shop.second", "third"):
            await settled(app, group, handled=1)
    assert seen[:2] == ["outer watches shop", "inner watches shop"]
    order = ["outer shop.first", "inner shop.first", "own "]
    assert [line for line in seen if line in order] == order
    assert seen.count("app's ") == 2
    order = ["app's  batch", "outer shop.second batch", "inner shop.second batch"]
    assert [line for line in seen if line in order] == order
    assert [line for line in seen if line.endswith(" third")] == ["outer third", "inner third"]


def told(app: App) -> dict[str, Group]:
    groups: dict[str, Group] = {}

    class Ear(Watcher):
        def of(self, group: Group) -> Watcher:
            groups[group.name] = group
            return self

    instrument(app, Ear("ear", []))
    return groups


async def test_what_observers_are_told() -> None:
    app = App("shop", "memory://", backoff=Backoff(attempts=3))

    @app.on(Topic("orders.{customer}", int))
    async def usual(n: int) -> None: ...

    @app.on(billed, backoff=Backoff(attempts=5))
    async def patient(n: int) -> None: ...

    @app.on("news.>", live=True)
    async def live(news: Any) -> None: ...

    @app.answer("quote")
    async def quote(n: int) -> int:
        return n

    @app.every("1h")
    async def hourly() -> None: ...

    assert told(app) == {
        "shop.usual": Group("shop.usual", "orders.{customer}", Backoff(attempts=3)),
        "shop.patient": Group("shop.patient", "orders.billed", Backoff(attempts=5)),
        "shop.live": Group("shop.live", "news.>", Backoff(attempts=1), once=True),
        "quote": Group("quote", "quote", Backoff(attempts=1), once=True),
        "shop.hourly": Group("shop.hourly", "", Backoff(attempts=3)),
    }


@pytest.mark.parametrize(
    ("group", "failures", "error", "outcome"),
    [
        (Group("g", backoff=Backoff(attempts=2)), 0, ValueError(), "retry"),
        (Group("g", backoff=Backoff(attempts=2)), 1, ValueError(), "dead"),
        (Group("g", backoff=Backoff(give_up=(ValueError,))), 0, ValueError(), "dead"),
        (Group("g", backoff=Backoff(attempts=1), once=True), 0, ValueError(), "dropped"),
        (Group(), 0, ValueError(), "failed"),
        (Group(), 0, Reject(), "dead"),
        (Group("g", backoff=Backoff()), 0, Retry("soon"), "dead"),
    ],
)
def test_outcomes(group: Group, failures: int, error: Exception, outcome: str) -> None:
    assert group.outcome(Delivery(Message("t"), Session(), failures=failures), error) == outcome


def test_a_dead_letter_that_fails_again_stays_where_it_is() -> None:
    letter = Delivery(Message("t", address="_dead.shop.ship"), Session())
    assert Group("g", backoff=Backoff()).outcome(letter, Reject()) == "dropped"


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("trace", "opentelemetry", "otel"), ("metrics", "prometheus_client", "metrics")],
)
def test_a_missing_package_is_said(module: str, package: str, extra: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(f"import sys\nsys.modules[{package!r}] = None\nimport tidings.middleware.{module}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "MissingExtra: TDG-E007" in done.stderr
    assert f"where: {script}:3" in done.stderr
    assert f"mend:  pip install 'tidings[{extra}]'" in done.stderr


def test_nothing_is_imported_until_it_is_wanted() -> None:
    code = "import sys, tidings.middleware, tidings.middleware.log; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()}.isdisjoint({"opentelemetry", "prometheus_client"})
