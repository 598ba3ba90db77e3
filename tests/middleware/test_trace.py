"""Traces, by the OpenTelemetry SDK and its in-memory exporter."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanKind, StatusCode

from tidings import App, Backoff, Defer, Delivery, Message, Partial, Reject, Skip, Topic
from tidings.kernel.errors import InvalidOption
from tidings.kernel.transport import Session
from tidings.middleware import instrument
from tidings.middleware.trace import Trace, carry

from .observed import PATIENCE, Spans, each_bus, settled, until, url

ROOT = Path(__file__).parents[2]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331

placed = Topic("orders.{customer}.placed", int)
billed = Topic("orders.billed", int)
told = Topic("told", int)


def keeper(seen: dict[str, Message[Any]], name: str) -> Any:
    """A handler that keeps the message it gets."""

    async def keep(message: Message[int]) -> None:
        seen[name] = message

    keep.__name__ = name
    return keep


@each_bus
async def test_a_span_is_the_child_of_what_its_message_came_from(scheme: str, tmp_path: Path) -> None:
    spans, app = Spans(), App("shop", url(scheme, tmp_path))

    @app.on(placed)
    async def bill(n: int, app: App) -> Message[int]:
        await app.publish(told, n)
        await app.publish_many([told(n), told(n)])
        return billed(n)

    @app.on(billed)
    async def ship(n: int) -> None: ...

    @app.on(told)
    async def tell(n: int) -> None: ...

    instrument(app, Trace(spans.provider))
    async with app:
        with spans.tracer.start_as_current_span("checkout"):
            await app.publish(placed.bind(customer="ann"), 1)
        await settled(app, "shop.ship", handled=1)
        await settled(app, "shop.tell", handled=3)
    checkout, bill_span = spans.one("checkout"), spans.one("process orders.{customer}.placed")
    assert len({span.context.trace_id for span in spans.ended}) == 1
    assert bill_span.parent.span_id == checkout.context.span_id
    assert bill_span.parent.is_remote
    children = [spans.one("process orders.billed"), *spans.named("process told")]
    assert [child.parent.span_id for child in children] == [bill_span.context.span_id] * 4


async def test_what_a_span_says() -> None:
    spans, app, seen = Spans(), App("shop", "memory://"), dict[str, Message[Any]]()
    app.on(placed)(keeper(seen, "bill"))
    app.on(billed)(keeper(seen, "ship"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(placed.bind(customer="ann"), 1)
        await app.publish(billed, 2)
        await settled(app, "shop.bill", handled=1)
        await settled(app, "shop.ship", handled=1)
    span = spans.one("process orders.{customer}.placed")
    assert span.kind is SpanKind.CONSUMER
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope.name == "tidings"
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert dict(span.attributes) == {
        "messaging.system": "tidings",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.consumer.group.name": "shop.bill",
        "messaging.destination.name": "orders.ann.placed",
        "messaging.destination.template": "orders.{customer}.placed",
        "messaging.message.id": seen["bill"].id,
        "tidings.attempt": 1,
    }
    assert "messaging.destination.template" not in spans.one("process orders.billed").attributes


@pytest.mark.parametrize(
    ("error", "outcomes", "status"),
    [
        (ValueError("no"), ["retry", "dead"], StatusCode.ERROR),
        (Reject("no"), ["dead"], StatusCode.ERROR),
        (Skip("no"), ["skipped"], StatusCode.UNSET),
        (Defer(0.01), ["deferred", None], StatusCode.UNSET),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_failure_says_what_follows(error: Exception, outcomes: list[str | None], status: StatusCode) -> None:
    spans, app = Spans(), App("shop", "memory://", backoff=Backoff(attempts=2, first=0.001))
    runs = 0

    @app.on(billed)
    async def ship(n: int) -> None:
        nonlocal runs
        runs += 1
        if not isinstance(error, Defer) or runs == 1:
            raise error

    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1)
        await until(lambda: len(spans.ended) == len(outcomes))
        dead = app.stats()["shop.ship"].dead
    assert [span.attributes.get("tidings.outcome") for span in spans.ended] == outcomes
    assert dead == outcomes.count("dead")  # the bus agrees
    first = spans.ended[0]
    assert first.status.status_code is status
    failed = status is StatusCode.ERROR
    kind = type(error).__name__ if isinstance(error, ValueError) else f"tidings.kernel.errors.{type(error).__name__}"
    assert first.attributes.get("error.type") == (kind if failed else None)
    assert [event.attributes["exception.message"] for event in first.events] == (["no"] if failed else [])
    if failed:
        frames = first.events[0].attributes["exception.stacktrace"]
        assert 'File "' + __file__ in frames.splitlines()[1], "the user's frames come first"


@each_bus
async def test_a_batch_is_one_span_with_a_link_to_each(scheme: str, tmp_path: Path) -> None:
    spans, app = Spans(), App("shop", url(scheme, tmp_path))
    app.backoff = Backoff(attempts=1)

    @app.on(billed, batch=3, within="10s")
    async def ship(ns: list[int]) -> Message[int]:
        if 2 in ns:
            raise Partial({ns.index(2): ValueError("no two")})
        return told(sum(ns))

    app.on(told)(keeper({}, "tell"))
    instrument(app, Trace(spans.provider))
    async with app:
        for n in (1, 2, 3):
            with spans.tracer.start_as_current_span(f"http {n}"):
                await app.publish(billed, n)
        await settled(app, "shop.ship", handled=2, dead=1)
        await app.publish_many([billed(4), billed(5), billed(6)])
        await settled(app, "shop.tell", handled=1)
    failed, good = spans.named("process orders.billed")
    causes = [spans.one(f"http {n}").context for n in (1, 2, 3)]
    assert [link.context.span_id for link in failed.links] == [cause.span_id for cause in causes]
    assert len({link.attributes["messaging.message.id"] for link in failed.links}) == 3
    assert failed.parent is None
    assert failed.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in failed.attributes
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["tidings.outcome"] == "dead"
    (event,) = failed.events
    assert event.attributes["exception.message"] == "no two"
    assert event.attributes["messaging.message.id"]
    assert good.links == ()
    assert spans.one("process told").parent.span_id == good.context.span_id


async def test_a_batch_that_fails_as_a_whole_is_tried_one_by_one() -> None:
    spans, app = Spans(), App("shop", "memory://")

    @app.on(billed, batch=2, within="10s")
    async def ship(ns: list[int]) -> None:
        if len(ns) > 1:
            raise RuntimeError("too many")

    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish_many([billed(1), billed(2)])
        await settled(app, "shop.ship", handled=2)
    whole, *alone = spans.ended
    assert whole.attributes["tidings.outcome"] == "one by one"
    assert [span.status.status_code for span in alone] == [StatusCode.UNSET, StatusCode.UNSET]
    assert all(span.attributes["messaging.message.id"] for span in alone)


@pytest.mark.parametrize(
    "sampler", [None, ParentBased(TraceIdRatioBased(1.0)), ALWAYS_OFF], ids=["none", "obeys", "off"]
)
async def test_what_came_unsampled_is_passed_on_unsampled(sampler: Any) -> None:
    spans = Spans(sampler) if sampler else None
    app, seen, current = App("shop", "memory://"), dict[str, Message[Any]](), list[Any]()

    @app.on(billed)
    async def ship(n: int, app: App) -> Message[int]:
        current.append(trace.get_current_span().get_span_context())
        await app.publish(Topic("published", int), n)
        return told(n)

    app.on(told)(keeper(seen, "returned"))
    app.on("published")(keeper(seen, "published"))
    # without an SDK: the global provider, of which these tests have none
    instrument(app, Trace(spans.provider if spans else None))
    async with app:
        await app.publish(billed, 1, headers={"traceparent": PARENT + "00", "tracestate": "a=1", "mine": "2"})
        await until(lambda: len(seen) == 2)
    assert current[0].trace_id == TRACE
    assert not current[0].trace_flags.sampled
    for message in seen.values():
        assert message.header("traceparent")[:36] == PARENT[:36]
        assert message.header("traceparent").endswith(("-00", "-02"))
        assert message.header("tracestate") == "a=1"
        assert message.header("mine") == ""
    assert spans is None or spans.ended == ()


async def test_a_sampled_context_is_passed_on_without_an_sdk() -> None:
    app, seen = App("shop", "memory://"), dict[str, Message[Any]]()

    @app.on(billed)
    async def ship(n: int) -> Message[int]:
        return told(n)

    app.on(told)(keeper(seen, "tell"))
    instrument(app, Trace())
    async with app:
        await app.publish(billed, 1, headers={"traceparent": PARENT + "01"})
        await settled(app, "shop.tell", handled=1)
        first = seen["tell"]
        await app.publish(billed, 2)
        await settled(app, "shop.tell", handled=2)
    assert first.header("traceparent") == PARENT + "01"
    assert seen["tell"].headers is None, "nothing came, and nothing records"


async def test_sample_lets_few_traces_begin_and_all_of_each() -> None:
    spans, app, seen = Spans(), App("shop", "memory://"), list[str]()

    @app.on(billed)
    async def ship(n: int) -> Message[int]:
        return told(n)

    @app.on(told)
    async def tell(message: Message[int]) -> None:
        seen.append(message.header("traceparent"))

    instrument(app, Trace(spans.provider, sample=0.5))
    async with app:
        await app.publish_many([billed(n) for n in range(400)])
        await app.publish(billed, 401, headers={"traceparent": PARENT + "01"})
        await settled(app, "shop.tell", handled=401)
    begun, followed = spans.named("process orders.billed"), spans.named("process told")
    assert 100 < len(begun) < 300
    assert {span.parent.span_id for span in followed} == {span.context.span_id for span in begun}
    assert sum(span.context.trace_id == TRACE for span in begun) == 1, "what was sampled before is never dropped"
    unsampled = [came for came in seen if came.endswith("-00")]
    assert len(unsampled) == 401 - len(begun)
    assert len({came[3:35] for came in seen}) == 401, "each is a trace of its own"


async def test_a_batch_is_recorded_if_one_of_its_messages_is() -> None:
    spans, app = Spans(), App("shop", "memory://")

    @app.on(billed, batch=2, within="10s")
    async def ship(ns: list[int]) -> None: ...

    instrument(app, Trace(spans.provider))
    async with app:
        for flags in (("00", "00"), ("00", "01")):
            await app.publish_many([billed(1, headers={"traceparent": PARENT + f}) for f in flags])
            await settled(app, "shop.ship", handled=2 if flags[1] == "00" else 4)
    assert [len(span.links) for span in spans.ended] == [2]


class Keen(Sampler):
    """Records all, whatever the sampler inside it says."""

    def should_sample(self, *arguments: Any, **options: Any) -> SamplingResult:
        return ALWAYS_ON.should_sample(*arguments, **options)

    def get_description(self) -> str:
        return f"Keen{{{DEFAULT_ON.get_description()}}}"


@pytest.mark.parametrize("sampler", [ALWAYS_ON, Keen()], ids=["on", "keen"])
async def test_a_sampler_that_does_not_obey_the_parent_is_asked(sampler: Sampler) -> None:
    spans, app = Spans(sampler), App("shop", "memory://")
    app.on(billed)(keeper({}, "ship"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1, headers={"traceparent": PARENT + "00"})
        await settled(app, "shop.ship", handled=1)
    assert spans.ended[0].parent.span_id == SPAN


@pytest.mark.parametrize("junk", ["", "00", "x" * 55, "00-" + "0" * 32 + "-" + "0" * 16 + "-00", PARENT + "zz"])
async def test_a_malformed_context_is_none(junk: str) -> None:
    spans, app = Spans(), App("shop", "memory://")

    @app.on(billed)
    async def ship(n: int) -> Message[int]:
        assert trace.get_current_span().get_span_context().trace_id != TRACE
        return told(n)

    app.on(told)(keeper({}, "tell"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1, headers={"traceparent": junk})
        await settled(app, "shop.tell", handled=1)
    assert all(span.parent is None or span.parent.trace_id != TRACE for span in spans.ended)


async def test_a_context_that_a_user_gave_stays() -> None:
    spans, app, seen = Spans(), App("shop", "memory://"), dict[str, Message[Any]]()

    @app.on(billed)
    async def ship(n: int) -> Message[int]:
        return told(n, headers={"traceparent": PARENT + "01"})

    app.on(told)(keeper(seen, "tell"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1)
        await settled(app, "shop.tell", handled=1)
    assert seen["tell"].headers == (("traceparent", PARENT + "01"),)


async def test_what_is_current_when_the_app_opens_is_nobodys_parent() -> None:
    spans, app = Spans(), App("shop", "memory://")
    app.on(billed)(keeper({}, "ship"))
    instrument(app, Trace(spans.provider))
    with spans.tracer.start_as_current_span("startup"):
        async with app:
            await app.publish(billed, 1, headers={"traceparent": PARENT + "01"})
            await app.bus().publish([Message("orders.billed", b"2", "bare")])
            await settled(app, "shop.ship", handled=2)
    assert [span.parent and span.parent.span_id for span in spans.named("process orders.billed")] == [SPAN, None]


async def test_a_thread_has_its_messages_context() -> None:
    spans, app = Spans(), App("shop", "memory://")

    @app.on(billed)
    def ship(n: int) -> Message[int]:
        with spans.tracer.start_as_current_span("inside"):
            return told(n)

    app.on(told)(keeper({}, "tell"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1)
        await settled(app, "shop.tell", handled=1)
    shipped = spans.one("process orders.billed").context.span_id
    assert spans.one("inside").parent.span_id == spans.one("process told").parent.span_id == shipped


async def test_a_worker_keeps_its_tasks() -> None:
    """Context variables that a handler leaves behind cost it its task: a span must not be left behind."""
    app, tasks = App("shop", "memory://"), set[int]()

    @app.on(billed, concurrency=1)
    async def ship(n: int) -> None:
        tasks.add(id(asyncio.current_task()))

    instrument(app, Trace(Spans().provider, sample=0.5))
    async with app:
        await app.publish_many([billed(n) for n in range(100)])
        await settled(app, "shop.ship", handled=100)
    assert len(tasks) == 1


@each_bus
async def test_two_buses(scheme: str, tmp_path: Path) -> None:
    spans = Spans()
    app = App("edge", url(scheme, tmp_path, "one"), cloud=url(scheme, tmp_path, "two"))
    up, down = Topic("up", int, bus="cloud"), Topic("down", int, bus="cloud")

    @app.on(billed)
    async def ship(n: int, app: App) -> Message[int]:
        await app.publish(up, n)
        return carry(down(n))

    app.on(up)(keeper({}, "rise"))
    app.on(down)(keeper({}, "sink"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1)
        await settled(app, "edge.rise", handled=1)
        await settled(app, "edge.sink", handled=1)
    cause = spans.one("process orders.billed").context.span_id
    assert [spans.one(f"process {name}").parent.span_id for name in ("up", "down")] == [cause, cause]


OTHER = """
import json
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tidings import App, Topic
from tidings.middleware import instrument
from tidings.middleware.trace import Trace

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
app = App("other", "sqlite:///bus.db")
billed, told = Topic("orders.billed", int), Topic("told", int)

@app.on(billed, start="first")
async def ship(n: int, app: App):
    app.stop()
    return told(n)

instrument(app, Trace(provider))
app.run()
print(json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()]))
"""


async def test_two_processes(tmp_path: Path) -> None:
    spans, app = Spans(), App("shop", f"sqlite:///{tmp_path}/bus.db")
    app.on(told)(keeper({}, "tell"))
    instrument(app, Trace(spans.provider))
    async with app:
        with spans.tracer.start_as_current_span("checkout"):
            await app.publish(billed, 1)
        environment = {name: value for name, value in os.environ.items() if name != "TIDINGS_URL"}
        command = [sys.executable, "-c", OTHER]
        done = subprocess.run(  # noqa: ASYNC221
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        await settled(app, "shop.tell", handled=1)
    (theirs,) = json.loads(done.stdout)
    checkout, ours = spans.one("checkout"), spans.one("process told")
    assert theirs["parent_id"] == f"0x{checkout.context.span_id:016x}"
    assert theirs["context"]["span_id"] == f"0x{ours.parent.span_id:016x}"
    assert checkout.context.trace_id == ours.context.trace_id == int(theirs["context"]["trace_id"], 16)


async def test_a_replayed_dead_letter_is_of_the_same_trace() -> None:
    spans, app = Spans(), App("shop", "memory://", backoff=Backoff(attempts=1))
    seen: dict[str, Message[Any]] = {}

    @app.on(billed)
    async def ship(n: int) -> None:
        raise ValueError(n)

    app.on("_dead.shop.ship")(keeper(seen, "undertaker"))
    instrument(app, Trace(spans.provider))
    async with app:
        await app.publish(billed, 1, headers={"traceparent": PARENT + "01"})
        await settled(app, "shop.undertaker", handled=1)
    assert seen["undertaker"].header("traceparent") == PARENT + "01"
    assert {span.context.trace_id for span in spans.ended} == {TRACE}


async def test_given_to_one_handler_it_knows_no_group() -> None:
    spans, app = Spans(), App("shop", "memory://", backoff=Backoff(attempts=1))

    @app.on(billed, middleware=(Trace(spans.provider),))
    async def ship(n: int) -> None:
        raise ValueError(n)

    app.on(told)(keeper({}, "tell"))
    async with app:
        await app.publish(billed, 1)
        await app.publish(told, 1)
        await settled(app, "shop.ship", dead=1)
        await settled(app, "shop.tell", handled=1)
    (span,) = spans.ended
    assert span.name == "process"
    assert "messaging.consumer.group.name" not in span.attributes
    assert span.attributes["tidings.outcome"] == "failed"


async def test_publishing_without_an_app_of_its_own_to_instrument() -> None:
    spans = Spans()
    assert carry(told(1)).headers is None
    with spans.tracer.start_as_current_span("plain") as span:
        carried = carry(told(1, headers={"mine": "1"}))
    assert carried.header("traceparent").startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-0")
    assert carried.header("mine") == "1"


@pytest.mark.parametrize("sample", [-0.1, 1.5])
def test_a_share_is_between_0_and_1(sample: float) -> None:
    with pytest.raises(InvalidOption, match="sample cannot be"):
        Trace(sample=sample)


async def test_a_cancelled_handler_is_told_so() -> None:
    spans = Spans()

    async def one(delivery: Delivery) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Trace(spans.provider)(one)(Delivery(billed(1), Session()))
    assert spans.ended[0].attributes["tidings.outcome"] == "cancelled"
