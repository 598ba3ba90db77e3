"""How a trace context travels: in the headers ``traceparent`` and ``tracestate`` (W3C Trace Context).

What is not recorded is not read either: its headers are passed on as they came, until somebody asks what they say.
"""

from __future__ import annotations

from random import getrandbits
from typing import TypeVar

from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidings.kernel.handler import Outgoing
from tidings.kernel.message import Headers, Message

T = TypeVar("T")

W3C, EMPTY = TraceContextTextMapPropagator(), Context()
KEY = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, EMPTY)))  # under which a context has its span
NAMES = ("traceparent", "tracestate")
FLAGS, UNSAMPLED = slice(54, None), frozenset("02468ace")  # the end of a traceparent; what it is of one not sampled
UNASKED = (  # how the SDK describes a sampler that never records what came unsampled, its default among them
    "ParentBased{",
    ",remoteParentNotSampled:AlwaysOffSampler,localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}",
)


class Passing(NonRecordingSpan):
    """A span that nobody records: of the trace that came in these headers, or of a new one, which is not sampled."""

    known = trace.INVALID_SPAN_CONTEXT

    def __init__(self, came: Headers | None) -> None:
        self.came = came

    def get_span_context(self) -> SpanContext:
        if self.known is trace.INVALID_SPAN_CONTEXT:
            came = context_of(self.came)
            self.known = came if came.is_valid else SpanContext(getrandbits(128), getrandbits(64), is_remote=False)
        return self.known

    def __repr__(self) -> str:
        return f"Passing({self.get_span_context()!r})"


def traceparent(headers: Headers | None) -> str | None:
    """The trace context among headers, as it came."""
    for name, value in headers or ():
        if name == "traceparent":
            return value
    return None


def obeys_parent(tracer: Tracer) -> bool:
    """Whether what came unsampled surely stays so, and the tracer need not be asked."""
    sampler = getattr(tracer, "sampler", None)  # the SDK's
    said = sampler.get_description() if sampler is not None else ""
    return said.startswith(UNASKED[0]) and said.endswith(UNASKED[1])


def context_of(headers: Headers | None) -> SpanContext:
    """The trace context among headers, read; invalid if there is none."""
    return trace.get_current_span(W3C.extract(dict(headers or ()), EMPTY)).get_span_context()


def pairs_of(span: Span) -> Headers:
    """The headers by which a span's context travels; none for an invalid one."""
    if span is trace.INVALID_SPAN:
        return ()
    if isinstance(span, Passing) and span.came is not None:
        return tuple(pair for pair in span.came if pair[0] in NAMES)
    carrier: dict[str, str] = {}
    W3C.inject(carrier, context_with(span))
    return tuple(carrier.items())


def carried(outgoing: Outgoing, pairs: Headers) -> Outgoing:
    """The same of several."""
    return tuple(with_headers(message, pairs) for message in outgoing)


def with_headers(message: Message[T], pairs: Headers) -> Message[T]:
    """A message with a trace context, unless it has one."""
    if not pairs or traceparent(message.headers) is not None:
        return message
    return replace(message, headers=(*(message.headers or ()), *pairs))


def context_with(span: Span) -> Context:
    """A context with this span and nothing else: what was current when the app was opened is nobody's parent."""
    return Context({KEY: span})
