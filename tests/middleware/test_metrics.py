"""Metrics, as a registry of prometheus_client writes and reads them."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from tidings import App, Backoff, Delivery, Message, Partial, Reject, Skip, Topic
from tidings.kernel.errors import Unsupported
from tidings.kernel.transport import Session
from tidings.middleware import Group, instrument
from tidings.middleware.metrics import Metrics

from .observed import each_bus, settled, until, url

billed = Topic("orders.billed", int)


def read(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample: name → labels → value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def app_with(metrics: Metrics, bus: str = "memory://") -> App:
    app = App("shop", bus, backoff=Backoff(attempts=2, first=0.001))
    instrument(app, metrics)
    return app


@each_bus
async def test_counts_by_group_and_outcome(scheme: str, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    app = app_with(Metrics(registry), url(scheme, tmp_path))
    raised: dict[int, Exception] = {1: ValueError("no"), 2: Reject("no"), 3: Skip("no")}

    @app.on(billed)
    async def ship(n: int) -> None:
        if n in raised:
            raise raised[n]

    @app.on(billed, batch=5, within="2s")
    async def tally(ns: list[int]) -> None:
        if len(ns) == 5:
            raise Partial({ns.index(1): ValueError("no")})

    async with app:
        await app.publish_many([billed(n) for n in range(5)])
        await settled(app, "shop.ship", dead=2, skipped=1)
        await settled(app, "shop.tally", handled=5)
        values = read(registry)
    assert values["tidings_messages_handled_total"] == {
        ("shop.ship", "handled"): 2,
        ("shop.ship", "retry"): 1,
        ("shop.ship", "dead"): 2,
        ("shop.ship", "skipped"): 1,
        ("shop.tally", "handled"): 5,
        ("shop.tally", "retry"): 1,
    }
    assert values["tidings_dead_letters_total"] == {("shop.ship",): 2, ("shop.tally",): 0}
    assert values["tidings_messages_in_flight"] == {("shop.ship",): 0, ("shop.tally",): 0}
    assert values["tidings_handler_duration_seconds_count"] == {("shop.ship",): 6, ("shop.tally",): 2}
    assert values["tidings_message_queue_time_seconds_count"] == {("shop.ship",): 5, ("shop.tally",): 5}, "once each"


async def test_a_batch_that_fails_as_a_whole_has_no_outcome_yet() -> None:
    registry = CollectorRegistry()
    app = app_with(Metrics(registry))

    @app.on(billed, batch=2, within="10s")
    async def tally(ns: list[int]) -> None:
        if len(ns) > 1 or ns == [1]:
            raise Reject("no")

    async with app:
        await app.publish_many([billed(1), billed(2)])
        await settled(app, "shop.tally", dead=1, handled=1)
    assert read(registry)["tidings_messages_handled_total"] == {("shop.tally", "handled"): 1, ("shop.tally", "dead"): 1}


async def test_durations() -> None:
    registry = CollectorRegistry()
    app, gate = app_with(Metrics(registry, bounds=(0.01, 0.05, 10))), asyncio.Event()

    @app.on(billed)
    async def ship(n: int) -> None:
        await gate.wait()

    async with app:
        await app.publish(billed, 1)
        await until(lambda: read(registry)["tidings_messages_in_flight"] == {("shop.ship",): 1})
        began = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - began > 0.06)
        gate.set()
        await settled(app, "shop.ship", handled=1)
    values = read(registry)
    took = values["tidings_handler_duration_seconds_bucket"]
    assert [took[("shop.ship", bound)] for bound in ("0.01", "0.05", "10.0", "+Inf")] == [0, 0, 1, 1]
    assert 0.06 <= values["tidings_handler_duration_seconds_sum"][("shop.ship",)] < 10
    assert 0 < values["tidings_message_queue_time_seconds_sum"][("shop.ship",)] < 30


@pytest.mark.parametrize(
    ("published", "due", "failures", "counted", "least", "most"),
    [
        (-1000, None, 0, 1, 1000, 1500),
        (-1000, -100, 0, 1, 100, 600),  # from when it was due
        (-1000, None, 1, 0, 0, 0),  # once for each message
        (+1000, None, 0, 1, 0, 0),  # of a machine whose clock is ahead
    ],
)
async def test_time_in_queue(
    published: float, due: float | None, failures: int, counted: int, least: float, most: float
) -> None:
    registry, now = CollectorRegistry(), time.time()
    message: Message[int] = Message("t", time=now + published, deliver_at=None if due is None else now + due)

    async def one(delivery: Delivery) -> tuple[()]:
        return ()

    await Metrics(registry).of(Group("g"))(one)(Delivery(message, Session(), failures=failures))
    values = read(registry)
    assert values["tidings_message_queue_time_seconds_count"] == {("g",): counted}
    assert least <= values["tidings_message_queue_time_seconds_sum"][("g",)] <= most


async def test_what_only_the_bus_and_the_worker_know() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    app = app_with(metrics)

    @app.on(billed)
    async def ship(n: int) -> None:
        raise Reject("no")

    async with app:
        app.pause("shop.ship")
        await app.publish(billed, 1, expires="1ms")
        await app.publish(billed, 2)
        assert "tidings_group_lag_messages" not in read(registry), "nobody has looked"
        await metrics.look(app.bus())
        assert read(registry)["tidings_group_lag_messages"] == {("shop.ship",): 2}
        assert read(registry)["tidings_group_oldest_timestamp_seconds"][("shop.ship",)] > 1.7e9
        began = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() - began > 0.002)
        app.pause("shop.ship", False)
        await settled(app, "shop.ship", dead=1, expired=1)
        values = read(registry)
    assert values["tidings_messages_expired_total"] == {("shop.ship",): 1}
    assert values["tidings_dead_letters_total"] == {("shop.ship",): 1}


async def test_a_bus_that_cannot_tell_its_groups() -> None:
    class Blind:
        capabilities = client = None

    blind: Any = Blind()
    with pytest.raises(Unsupported, match="Blind cannot tell its groups"):
        await Metrics(None).look(blind)


async def test_names_and_units_are_as_prometheus_wants_them() -> None:
    registry = CollectorRegistry()
    app = app_with(Metrics(registry))

    @app.on(billed)
    async def ship(n: int) -> None: ...

    async with app:
        await app.publish(billed, 1)
        await settled(app, "shop.ship", handled=1)
        families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert families
    for family in families:
        assert family.name.startswith("tidings_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert (family.type == "histogram") <= family.name.endswith("_seconds")


async def test_two_apps_share_one_collector_and_a_second_is_refused() -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics = Metrics(registry)
    for name in ("shop", "stock"):
        app = App(name, "memory://")

        @app.on(billed)
        async def ship(n: int) -> None: ...

        instrument(app, metrics)
        async with app:
            await app.publish(billed, 1)
            await settled(app, f"{name}.ship", handled=1)
    assert read(registry)["tidings_messages_handled_total"] == {
        ("shop.ship", "handled"): 1,
        ("stock.ship", "handled"): 1,
    }
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(registry)


async def test_scraped_over_http_while_it_counts() -> None:
    registry = CollectorRegistry()
    app = app_with(Metrics(registry))

    @app.on(billed)
    async def ship(n: int) -> None: ...

    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        async with app:
            await app.publish_many([billed(n) for n in range(5000)])
            address = f"http://127.0.0.1:{server.server_port}/metrics"
            pages = [await asyncio.to_thread(lambda: urllib.request.urlopen(address).read()) for _ in range(5)]
            await settled(app, "shop.ship", handled=5000)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert all(b"tidings_messages_handled_total" in page for page in pages)
    assert read(registry)["tidings_messages_handled_total"] == {("shop.ship", "handled"): 5000}


async def test_given_to_the_app_it_counts_all_handlers_together() -> None:
    registry = CollectorRegistry()
    app = App("shop", "memory://", middleware=(Metrics(registry),), backoff=Backoff(attempts=1))

    @app.on(billed)
    async def ship(n: int) -> None:
        raise ValueError(n)

    @app.on(billed, batch=2)
    async def tally(messages: list[Message[int]]) -> None: ...

    async with app:
        await app.publish(billed, 1)
        await settled(app, "shop.ship", dead=1)
        await settled(app, "shop.tally", handled=1)
    assert read(registry)["tidings_messages_handled_total"] == {("", "handled"): 1, ("", "failed"): 1}
