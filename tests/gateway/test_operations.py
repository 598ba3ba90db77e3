"""What operators ask: health, readiness, numbers; traces that go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from starlette.datastructures import Headers
from tests.transports.consuming import until

from tidings import App, Message
from tidings.gateway.tracing import trace_headers
from tidings.middleware import instrument
from tidings.middleware.metrics import Metrics
from tidings.middleware.trace import Trace

from .serving import known, served

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def numbers(page: str) -> dict[str, float]:
    """Samples by name and labels."""
    families = list(plain(page))
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    return {f"{sample.name}{sorted(sample.labels.values())}": sample.value for sample in samples}


async def test_alive_and_ready_need_no_token() -> None:
    async with served(clients=(known("shop", publish=("a",)),)) as running, running.client() as client:
        assert (await client.get("/healthz")).json() == {"status": "alive"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.post("/healthz")).status_code == 405


async def test_a_bus_that_is_away_is_not_ready(tmp_path: Path) -> None:
    app = App("gateway", f"sqlite:///{tmp_path}/bus.db")
    async with served(app) as running, running.client() as client:
        assert (await client.get("/readyz")).status_code == 200
        await app.bus().close()
        answer = await client.get("/readyz")
        while answer.status_code == 200:  # an answer of the bus is good for a second
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["why"]) == (503, "the bus is away")
        assert answer.headers["retry-after"] == "2"
        assert (await client.get("/healthz")).status_code == 200


async def test_metrics_need_the_right() -> None:
    clients = (known("shop", publish=(">",), subscribe=(">",), member=True), known("prometheus", admin=True))
    async with served(clients=clients) as running:
        async with running.client() as stranger, running.client("shop") as shop:
            assert (await stranger.get("/metrics")).status_code == 401
            assert (await shop.get("/metrics")).status_code == 403
        async with running.client("prometheus") as prometheus:
            assert (await prometheus.get("/metrics")).status_code == 200


async def test_what_is_counted(tmp_path: Path) -> None:
    app = App("shop", f"sqlite:///{tmp_path}/bus.db")

    @app.on("orders.placed")
    async def bill(order: int) -> None: ...

    async with served(app) as running, running.client() as client:
        assert (await client.post("/topics/orders.placed", json=1)).status_code == 202
        lines = {"content-type": "application/x-ndjson"}
        assert (await client.post("/topics/orders.placed", content=b"1\n2\n", headers=lines)).status_code == 202
        for path in ("/no/such/page", "/wp-admin", "/topics/a..b"):
            assert (await client.get(path)).status_code >= 400
        await until(lambda: app.stats()["shop.bill"].handled == 3)
        page = await client.get("/metrics")
        told = numbers(page.text)
        assert told["tidings_gateway_published_total[]"] == 3
        assert told["tidings_gateway_requests_total['/topics', '202', 'POST']"] == 2
        assert told["tidings_gateway_requests_total['404', 'GET', 'other']"] == 2
        assert told["tidings_gateway_request_duration_seconds_count['/topics']"] == 3
        assert told["tidings_messages_handled_total['handled', 'shop.bill']"] == 3
        assert told["tidings_group_lag_messages['shop.bill']"] == 0
        assert told["tidings_gateway_streams[]"] == 0
        as_open = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert {"tidings_gateway_requests", "tidings_gateway_published"} <= {f.name for f in openmetrics(as_open.text)}


async def test_what_an_app_measures_itself_is_told_too_and_nothing_twice(tmp_path: Path) -> None:
    app, own = App("shop", f"sqlite:///{tmp_path}/bus.db"), Metrics()
    mine = Counter("shop_orders", "Orders.")
    instrument(app, own)

    @app.on("orders.placed")
    async def bill(order: int) -> None:
        mine.inc()

    try:
        async with served(app) as running, running.client() as client:
            assert (await client.post("/topics/orders.placed", json=1)).status_code == 202
            await until(lambda: app.stats()["shop.bill"].handled == 1)
            told = numbers((await client.get("/metrics")).text)
    finally:
        REGISTRY.unregister(own)
        REGISTRY.unregister(mine)
    assert told["shop_orders_total[]"] == told["tidings_messages_handled_total['handled', 'shop.bill']"] == 1


# -- traces


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (PARENT, True),
        (PARENT.replace("00-", "01-") + "-more", True),
        (PARENT.replace("00-", "ff-"), False),
        (PARENT.upper(), False),
        (PARENT[:-1], False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", False),
        ("", False),
        ("nonsense\u00e9", False),
    ],
)
def test_only_a_trace_context_is_passed_on(given: str, kept: bool) -> None:
    headers = Headers({"traceparent": given, "tracestate": "a=1"})
    assert trace_headers(headers) == ((("traceparent", given), ("tracestate", "a=1")) if kept else ())


def test_a_state_that_is_too_long_is_left_out() -> None:
    assert trace_headers({"traceparent": PARENT, "tracestate": "a" * 600}) == (("traceparent", PARENT),)


def test_a_message_is_the_child_of_the_span_of_its_request() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        ((name, value),) = trace_headers({"traceparent": PARENT})
    assert (name, value.split("-")[1]) == ("traceparent", f"{span.get_span_context().trace_id:032x}")
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_trace_goes_on_in_handlers(tmp_path: Path) -> None:
    app, came = App("shop", f"sqlite:///{tmp_path}/bus.db", middleware=(Trace(),)), list[str]()

    @app.on("orders.placed")
    async def bill(message: Message[int]) -> Message[int]:
        return Message("orders.billed", data=1)

    @app.on("orders.billed")
    async def ship(message: Message[int]) -> None:
        came.append(message.header("traceparent") or "")

    async with served(app) as running, running.client() as client:
        answer = await client.post("/topics/orders.placed", json=1, headers={"traceparent": PARENT})
        assert answer.status_code == 202
        await until(lambda: came)
    assert came[0].split("-")[1] == PARENT.split("-")[1]
