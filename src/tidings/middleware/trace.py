"""Traces by OpenTelemetry: a span for each handled message, and ``traceparent`` on all that follows from it.

The context travels in two headers, ``traceparent`` and ``tracestate`` (W3C Trace Context). A handler's span is the
child of the one its message came from; a batch has one span, with a link to each. What the handler returns and what is
published carries the context on. What is not recorded costs next to nothing: its context is read, or made, only when
somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import random
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.channels import drafted
from tidings.kernel.errors import InvalidOption, MissingExtra, text_of, users
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.transport import Delivery

from . import Group, _semconv

try:
    from opentelemetry import trace
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Status, StatusCode, Tracer

    from ._w3c import (
        EMPTY,
        FLAGS,
        KEY,
        UNSAMPLED,
        Passing,
        carried,
        context_of,
        context_with,
        obeys_parent,
        pairs_of,
        traceparent,
        with_headers,
    )
except ImportError as error:
    mend = "pip install 'tidings[otel]'"
    raise MissingExtra("tracing needs a package that is not installed", why=str(error), mend=mend) from None

T = TypeVar("T")


class Trace(Struct):
    """A middleware that traces handlers. ``provider``: default the global one, as it is when the app opens.

    ``sample``: the share of messages without a context that may begin a trace. It decides before the SDK's sampler, and
    cheaper, so leave that one at its default, which records what is sampled. Without an SDK the context is only passed
    on. Raises ``InvalidOption``.
    """

    provider: trace.TracerProvider | None = None
    sample: float = 1.0
    group: Group = Group()

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise InvalidOption(f"sample cannot be {self.sample!r}", mend="a share: 0 to 1")

    def of(self, group: Group) -> Trace:
        """The same, around a handler of this group."""
        return replace(self, group=group)

    def attach(self, app: Any) -> None:
        """From now on, what the app publishes carries the current context."""
        publish, publish_many, publish_in = app.publish, app.publish_many, app.publish_in

        async def carrying(topic: Any, data: Any = None, /, **meta: Any) -> None:
            await publish(carry(drafted(topic, data, meta)))

        async def carrying_many(messages: Any, /) -> None:
            pairs = pairs_of(trace.get_current_span())
            await publish_many(with_headers(message, pairs) for message in messages)

        async def carrying_in(connection: Any, /, *messages: Message[Any]) -> None:
            await publish_in(connection, *map(carry, messages))

        vars(app).update(publish=carrying, publish_many=carrying_many, publish_in=carrying_in)

    def __call__(self, one: One) -> One:
        start, failed = self._starter(), self._failed

        async def traced(delivery: Delivery) -> Outgoing:
            span = start(delivery)
            if span is None:
                return await one(delivery)
            token = attach(Context({KEY: span}))
            try:
                outgoing = await one(delivery)
            except BaseException as error:
                failed(span, delivery, error)
                raise
            finally:
                detach(token)
                span.end()
            return carried(outgoing, pairs_of(span)) if outgoing else outgoing

        return traced

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""
        start, failed = self._batch_starter(), self._failed

        async def traced(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            span = start(deliveries)
            if span is None:
                return await many(deliveries)
            token = attach(Context({KEY: span}))
            try:
                outcomes = list(await many(deliveries))
                for index, outcome in enumerate(outcomes):
                    if isinstance(outcome, BaseException):
                        failed(span, deliveries[index], outcome)
                    elif outcome:
                        outcomes[index] = carried(outcome, pairs_of(span))
            except BaseException as error:  # several are tried again one by one
                failed(span, deliveries[0] if len(deliveries) == 1 else None, error)
                raise
            finally:
                detach(token)
                span.end()
            return outcomes

        return traced

    def _starter(self) -> Callable[[Delivery], Span | None]:
        """How a span starts; ``None`` where nothing is recorded, and nothing came that must be passed on."""
        tracer, records, obeys = self._tracer()
        sample, started = self.sample, self._started

        def start(delivery: Delivery) -> Span | None:
            headers = delivery.message.headers
            for name, came in headers or ():
                if name == "traceparent":
                    if not records or (obeys and came[FLAGS] in UNSAMPLED):
                        return Passing(headers)
                    return started(tracer, (delivery,))
            if not records:
                return None
            if sample < 1.0 and random() >= sample:
                return Passing(None)
            return started(tracer, (delivery,))

        return start

    def _batch_starter(self) -> Callable[[Sequence[Delivery]], Span | None]:
        """The same for a batch: recorded if one of its messages is, or by ``sample`` if one has no context."""
        tracer, records, obeys = self._tracer()
        start_one, sample, started = self._starter(), self.sample, self._started

        def start(deliveries: Sequence[Delivery]) -> Span | None:
            if len(deliveries) == 1:
                return start_one(deliveries[0])
            if not records:
                return None
            came = [traceparent(delivery.message.headers) for delivery in deliveries]
            ours = [one for one in came if one is not None and not (obeys and one[FLAGS] in UNSAMPLED)]
            if not ours and (None not in came or random() >= sample):
                return Passing(None)
            return started(tracer, deliveries)

        return start

    def _tracer(self) -> tuple[Tracer, bool, bool]:
        """A tracer, whether it may record, and whether its sampler certainly drops what came unsampled."""
        tracer = trace.get_tracer("tidings", tracer_provider=self.provider, schema_url=_semconv.SCHEMA_URL)
        return tracer, not isinstance(tracer, trace.ProxyTracer | trace.NoOpTracer), obeys_parent(tracer)

    def _started(self, tracer: Tracer, deliveries: Sequence[Delivery]) -> Span:
        came = [(context_of(delivery.message.headers), delivery.message.id) for delivery in deliveries]
        alone = len(deliveries) == 1
        return tracer.start_span(
            _semconv.span_name(self.group, deliveries),
            context_with(NonRecordingSpan(came[0][0])) if alone else EMPTY,
            SpanKind.CONSUMER,
            _semconv.process(self.group, deliveries),
            () if alone else [Link(context, {_semconv.MESSAGE_ID: id}) for context, id in came if context.is_valid],
        )

    def _failed(self, span: Span, delivery: Delivery | None, error: BaseException) -> None:
        """``delivery=None``: several at once."""
        if not span.is_recording():
            return
        outcome = self.group.outcome(delivery, error) if delivery is not None else "one by one"
        told: dict[str, str] = {_semconv.OUTCOME: outcome}
        span.set_attributes(told)
        if outcome not in ("skipped", "deferred"):
            span.set_attribute(_semconv.ERROR_TYPE, _semconv.error_type(error))
            if delivery is not None:
                told[_semconv.MESSAGE_ID] = delivery.message.id
            span.record_exception(users(error), told)
            span.set_status(Status(StatusCode.ERROR, text_of(error)))


def carry(message: Message[T]) -> Message[T]:
    """A message, not yet published, with the current trace context, unless it has one.

    For what ``instrument`` does not reach: what a handler returns to another bus, and apps that are not instrumented.
    """
    return with_headers(message, pairs_of(trace.get_current_span()))
