"""``tidings request``."""

from __future__ import annotations

import asyncio
import base64
import sys
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from tidings.kernel.message import JSON, TEXT, seconds
from tidings.kernel.topics import check_topic, refuse_reserved

from . import show
from ._bus import Source, opened
from ._input import body_of, whole
from ._options import Json, Url, flag
from .publish import addressed


def request(
    service: Annotated[str, Parameter(help="Whom to ask. May be preceded by module:app, to use that app's bus.")],
    data: Annotated[str | None, Parameter(help="JSON, or text. Without it, or -: standard input.")] = None,
    more: Annotated[str | None, Parameter(show=False)] = None,
    /,
    *,
    timeout: Annotated[str, Parameter(help="How long to wait, for all replies.")] = "30s",
    stream: Annotated[bool, flag("Print all replies of a service that streams, one on each line.")] = False,
    text: Annotated[bool, flag("Ask with text, even if it looks like JSON.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Ask a service and print its reply: JSON as JSON, text as text.

    With --json text is a JSON string, and bytes are {"data_base64": ...}.
    """
    service, data, source = addressed(service, data, more, url)
    refuse_reserved(check_topic(service))
    asyncio.run(_ask(source, service, data, seconds(timeout, "--timeout"), stream, text, json))


async def _ask(
    source: Source, service: str, data: str | None, timeout: float, stream: bool, text: bool, json: bool
) -> None:
    body = body_of(await whole(data, None), text=text)
    payload: Any = body.data
    if body.content_type == JSON:
        payload = msgspec.json.decode(body.data)
    elif body.content_type == TEXT:
        payload = body.data.decode()
    async with opened(source) as app:
        if not stream:
            _print(await app.request(service, payload, Any, timeout=timeout), json, pretty=True)
            return
        async for reply in app.request_stream(service, payload, Any, timeout=timeout):
            _print(reply, json)


def _print(reply: Any, json: bool, pretty: bool = False) -> None:
    if isinstance(reply, bytes):
        encoded = base64.b64encode(reply).decode()
        show.say(msgspec.json.encode({"data_base64": encoded}).decode() if json else encoded)
    elif isinstance(reply, str) and not json:
        show.say(show.clean(reply, "\n\t") if sys.stdout.isatty() else reply)
    elif pretty:
        show.document(reply)
    else:
        show.say(msgspec.json.encode(reply).decode())
