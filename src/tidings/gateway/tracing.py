"""Traces that come by HTTP go on in messages: ``traceparent`` and ``tracestate`` (W3C Trace Context)."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from tidings.kernel.message import Headers

# Version 00, or a later one that begins as it does; neither id is all zeros (W3C Trace Context, section 3.2).
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
STATE = 512  # characters of tracestate that must be passed on, section 3.3.1.5


def trace_headers(headers: Mapping[str, str]) -> Headers:
    """The headers of a message that joins the trace of a request with these; none without a trace.

    Where a tracer has made a span for the request, the message is its child. What is malformed begins no trace.
    """
    if "opentelemetry" in sys.modules and (current := _current()):
        return current
    parent = headers.get("traceparent", "").strip()
    if not TRACEPARENT.fullmatch(parent):
        return ()
    state = headers.get("tracestate", "").strip()
    return (("traceparent", parent), ("tracestate", state)) if 0 < len(state) <= STATE else (("traceparent", parent),)


def _current() -> Headers:
    from opentelemetry import trace

    from tidings.middleware._w3c import pairs_of

    return pairs_of(trace.get_current_span())
