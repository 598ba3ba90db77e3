"""``tidings publish``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec import UNSET
from msgspec.structs import replace

from tidings import App, Message, Topic
from tidings.kernel.codec import seal
from tidings.kernel.errors import InvalidName, InvalidOption, TidingsError
from tidings.kernel.message import new_id
from tidings.kernel.topics import check_topic, refuse_reserved

from . import show
from ._bus import Source, configured, file_of, find_source, opened
from ._input import UNSAID, Body, body_of, lines, whole
from ._options import Json, Url, flag

BATCH = 1_000


def publish(
    topic: Annotated[str, Parameter(help="Where to. May be preceded by module:app, to use that app's bus.")],
    data: Annotated[str | None, Parameter(help="JSON, or text. Without it, or -: standard input.")] = None,
    more: Annotated[str | None, Parameter(show=False)] = None,
    /,
    *,
    key: Annotated[str | None, Parameter(help="Messages of one key keep their order.")] = None,
    header: Annotated[list[str] | None, Parameter(help="NAME=VALUE; may be given several times.")] = None,
    delay: Annotated[str | None, Parameter(help="Deliver after this long: 10s, 5m, 1h30m.")] = None,
    expires: Annotated[str | None, Parameter(help="Worthless after this long.")] = None,
    priority: Annotated[int, Parameter(help="0 to 9, higher first.")] = 0,
    file: Annotated[str | None, Parameter(help="Publish what is in this file.")] = None,
    lines: Annotated[bool, flag("One message for each line; blank lines are skipped.")] = False,
    text: Annotated[bool, flag("As text, even if it looks like JSON.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Publish a message: durable when this returns.

    JSON is published as it is, other text as text/plain, anything else as bytes.
    """
    topic, data, source = addressed(topic, data, more, url)
    meta: dict[str, Any] = {"key": key, "headers": headers_of(header or []), "priority": priority}
    meta |= {name: value for name, value in (("delay", delay), ("expires", expires)) if value is not None}
    template = Topic(refuse_reserved(check_topic(topic)))("", **meta)
    seal(template, now=0.0, source="")  # what is wrong is refused before anything is opened
    if not lines:
        asyncio.run(_one(source, template, data, file, text, json))
    elif data not in UNSAID:
        raise InvalidOption("--lines reads a file or standard input, not DATA", mend="drop one")
    else:
        asyncio.run(_Lines(template, file, text, json).publish(source))


def addressed(name: str, data: str | None, more: str | None, url: str | None) -> tuple[str, str | None, Source]:
    """(name, data, bus) of ``[module:app] NAME [DATA]``: no topic has a colon."""
    if ":" not in name:
        if more is not None:
            mend = f"quote the data: '{{\"id\": 7}}'; an app is named with a colon: {name}:app"
            raise InvalidOption(f"too many arguments: {more}", mend=mend)
        return name, data, find_source(url)
    try:
        topic = check_topic(data or "")
    except InvalidName:
        check_topic(name)
        raise
    from ._target import find_app

    app = find_app(name)
    return topic, more, configured(url) or Source(app.urls[""], name)


def headers_of(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` each; raises ``InvalidOption``."""
    split = [text.partition("=") for text in given]
    for text, (name, equals, _) in zip(given, split, strict=True):
        if not name or not equals:
            raise InvalidOption(f"--header cannot be {text!r}", mend="--header NAME=VALUE")
    return {name: value for name, _, value in split}


def filled(template: Message[Any], body: Body, id: str) -> Message[Any]:
    return replace(template, data=UNSET, body=body.data, content_type=body.content_type, id=id)


async def _one(
    source: Source, template: Message[Any], data: str | None, file: str | None, text: bool, json: bool
) -> None:
    message = filled(template, body_of(await whole(data, file), text=text), new_id())
    new = _new_file(source)
    async with opened(source, create=True) as app:
        await app.publish(message)
        unheard = app.events["unrouted"]
    if json:
        show.document({"published": 1, "tdgtopic": message.topic, "id": message.id, "url": str(source)})
    else:
        show.say(f"published {message.id} to {message.topic} on {source}")
    if unheard:
        show.note(f"nobody listens to {message.topic}: only a group with start='first' would still get it")
    if unheard and new:
        show.note(f"{new} did not exist before: if the app runs in another folder, its file is there")


def _new_file(source: Source) -> str:
    """The bus, if it is a file that is about to be made; else ``""``."""
    file = file_of(source.options())
    return str(file) if file is not None and not os.path.exists(file) else ""


class _Lines:
    """One message a line, in batches, each of them durable before the next."""

    def __init__(self, template: Message[Any], file: str | None, text: bool, json: bool) -> None:
        self.template, self.file, self.text, self.json = template, file, text, json
        self.read = self.published = 0
        self.began = self.shown = time.monotonic()

    async def publish(self, source: Source) -> None:
        try:
            async with opened(source, create=True) as app:
                async for some in lines(self.file):
                    for first in range(0, len(some), BATCH):
                        await self._batch(app, some[first : first + BATCH])
        except (TidingsError, asyncio.CancelledError):
            self._progress(end=True)
            show.warn(f"{self.published:,} messages were published before that")
            raise
        self._progress(end=True)
        took = time.monotonic() - self.began
        topic = self.template.topic
        if self.json:
            result = {"published": self.published, "tdgtopic": topic, "seconds": round(took, 3), "url": str(source)}
            show.document(result)
        else:
            show.say(f"published {self.published:,} messages to {topic} on {source} in {took:.1f} s")

    async def _batch(self, app: App, some: list[bytes]) -> None:
        messages, wrong = list[Message[Any]](), None
        for line in some:
            self.read += 1
            if line.strip():
                try:
                    body = body_of(line.removesuffix(b"\r"), text=self.text)
                except TidingsError as error:
                    error.what = f"line {self.read}: {error.what}"
                    wrong = error
                    break
                messages.append(filled(self.template, body, new_id()))
        await app.publish_many(messages)
        self.published += len(messages)
        if wrong:
            raise wrong
        self._progress()

    def _progress(self, end: bool = False) -> None:
        """A line that is written over, on a terminal, ten times a second."""
        now = time.monotonic()
        if sys.stderr.isatty() and (end or now - self.shown > 0.1):
            rate = self.published / max(now - self.began, 1e-6)
            line = "" if end else f"{self.published:,} messages, {rate:,.0f}/s"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self.shown = now
