"""``tidings replay``."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, tzinfo
from heapq import merge
from itertools import chain, islice
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from cyclopts import Parameter

from tidings import App, Message
from tidings.kernel.errors import InvalidOption, PublishFailed, TidingsError, nearest
from tidings.kernel.message import new_id
from tidings.kernel.topics import check_pattern, check_topic, refuse_reserved

from . import show
from ._ahead import Ahead
from ._apart import Apart
from ._bus import Source, file_of, find_source, inspectable, opened
from ._copies import Copies
from ._options import DryRun, Json, Url, flag, since_time
from ._progress import Progress
from ._rows import Item, Plan, Read, check_template, in_time_order
from ._sorting import ordered

BATCH, MOST = 5_000, 20  # messages at once; topics that are listed
LARGE = 1_000_000  # bytes of files that are read in a process of its own


TimeField = Annotated[str | None, Parameter(help="The column that says when it was; or several: year,month,day,hour.")]
TimeFormat = Annotated[str | None, Parameter(help="How to read it, if not as ISO 8601: '%d/%m/%Y %H:%M'.")]
From = Annotated[
    str | None, Parameter(name="--from", help="No files: what the bus retains of these topics, a name or a pattern.")
]
Since = Annotated[
    str | None, Parameter(help="With --from: not before. -1h, or a date and time.", allow_leading_hyphen=True)
]
Until = Annotated[
    str | None, Parameter(help="With --from: only before. -1h, or a date and time.", allow_leading_hyphen=True)
]


def replay(
    *files: Annotated[str, Parameter(help="CSV or JSON Lines, gzip too; - is standard input.")],
    topic: Annotated[str | None, Parameter(help="Where to: 'air.{station}' takes a column's value.")] = None,
    key: Annotated[str | None, Parameter(help="This column is the key.")] = None,
    time_field: TimeField = None,
    time_format: TimeFormat = None,
    zone: Annotated[str, Parameter(help="Of times that name none: Europe/Berlin.")] = "UTC",
    null: Annotated[list[str] | None, Parameter(help="What a CSV has where there is no value: NA.")] = None,
    text: Annotated[bool, flag("All fields of a CSV as text, numbers too.")] = False,
    sort: Annotated[bool, flag("Files are in no order of time: sort them first.")] = False,
    skip_bad: Annotated[bool, flag("Leave out lines that cannot be read, and count them.")] = False,
    from_: From = None,
    since: Since = None,
    until: Until = None,
    to: Annotated[str | None, Parameter(help="With --from: to this bus.")] = None,
    speed: Annotated[float | None, Parameter(help="Times as fast as it happened; default: as fast as it goes.")] = None,
    limit: Annotated[int | None, Parameter(help="End after so many.")] = None,
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Publish files in time order, or again what a bus retains.

    Several files are merged. A record of a CSV becomes a JSON object, its columns as names.
    """
    _check_numbers(speed, limit)
    about_files: dict[str, Any] = {"--key": key, "--time-field": time_field, "--time-format": time_format}
    about_files |= {"--null": null, "--text": text, "--sort": sort, "--skip-bad": skip_bad, "FILE": files}
    source = find_source(url)
    if from_ is not None:
        _refuse(about_files, "is for files, and --from is for what a bus retains")
        copies, target = _copies(source, from_, topic, to, since, until)
        run = _Run(target, speed, limit, dry_run)
        asyncio.run(_retained(run, source, copies))
        run.tell(topic or from_, json)
        return
    _refuse({"--since": since, "--until": until, "--to": to}, "is for what a bus retains: --from PATTERN")
    if not files:
        raise InvalidOption("what shall be replayed?", mend="FILE…, - for standard input, or --from PATTERN of a bus")
    read_as: dict[str, Any] = {"time_format": time_format, "zone": _zone(zone)}
    read_as["time"] = time_field.split(",") if time_field else []
    read_as |= {"null": null or [], "text": text, "sort": sort, "skip_bad": skip_bad}
    plan = Plan(topic=_topic(topic), key=key, **read_as)
    if not plan.time and (speed is not None or sort):
        raise InvalidOption("when was it?", mend="--time-field COLUMN, or several: year,month,day,hour")
    reads = [Read(name, number) for number, name in enumerate(files)]
    run = _Run(source, speed, limit, dry_run)
    items: Iterator[Item] = islice(_merged(reads, plan), limit)
    sizes = [read.size for read in reads]
    if not dry_run and speed is None and all(sizes) and sum(sizes) > LARGE:
        items = iter(Apart(items, plan))
    asyncio.run(_files(run, items, reads, plan))
    run.tell(plan.topic, json)


def _check_numbers(speed: float | None, limit: int | None) -> None:
    if speed is not None and not 0 < speed < math.inf:
        raise InvalidOption(f"--speed cannot be {speed:g}", mend="how many times as fast as it happened: 3600")
    if limit is not None and limit < 1:
        raise InvalidOption(f"--limit cannot be {limit}", mend="a number, at least 1")


def _refuse(given: dict[str, Any], why: str) -> None:
    for name, value in given.items():
        if value:
            raise InvalidOption(f"{name} {why}", mend="see `tidings replay --help`")


def _topic(given: str | None) -> str:
    if given is None:
        raise InvalidOption("where to?", mend="--topic readings, or --topic 'air.{station}' by a column")
    refuse_reserved(check_template(given))
    return given


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        mend = nearest(name, available_timezones()) or "UTC, or a name such as Europe/Berlin"
        raise InvalidOption(f"there is no time zone {name!r}", mend=mend) from None


def _copies(
    source: Source, pattern: str, topic: str | None, to: str | None, since: str | None, until: str | None
) -> tuple[Copies, Source]:
    pattern = refuse_reserved(check_pattern(pattern))
    target = source if to is None else Source(to, "--to")
    same_bus = _one_bus(source, target)
    if topic is None and same_bus:
        raise InvalidOption("where to?", mend="--topic TOPIC ('again.{topic}' keeps their names), or --to URL")
    if topic is not None:
        refuse_reserved(check_topic(topic.replace("{topic}", "x")))
    copies = Copies(pattern=pattern, topic=topic, same_bus=same_bus)
    copies.since = copies.since if since is None else since_time(since)
    copies.until = copies.until if until is None else since_time(until, "--until")
    return copies, target


def _one_bus(one: Source, other: Source) -> bool:
    """Whether two names are seen to be those of one bus: of a file also by a link. Of two addresses nobody knows."""
    files = file_of(one.options()), file_of(other.options())
    if files[0] and files[1] and files[0].exists() and files[1].exists():
        return files[0].samefile(files[1])
    return str(one) == str(other)


# -- from files


async def _files(run: _Run, items: Iterator[Item], reads: Sequence[Read], plan: Plan) -> None:
    size = math.fsum(read.size for read in reads)
    with Progress("messages", size) as progress, run.told():
        if run.dry_run:
            for item in items:
                run.count(item[3], item[0])
                progress(run.total, sum(read.position for read in reads))
        else:
            ahead = Ahead(_messages(items, plan.topic))
            if all(read.size for read in reads):  # of a pipe nobody knows when there will be more
                # What is wrong with the first lines is said before anything is published; to be sorted, all are read.
                await ahead.begun(soon=plan.sort)
            async with opened(run.target, create=True) as app:
                async for batch in ahead.batches(BATCH):
                    await run.publish(app, batch)
                    progress(run.total, sum(read.position for read in reads))
    run.skipped = plan.skipped


def _merged(reads: Sequence[Read], plan: Plan) -> Iterator[Item]:
    """The records of all files: in time order, or one file after the other where no time is known."""
    if plan.sort:
        records = ordered(chain.from_iterable(read.items(plan) for read in reads))
        return ((*record[:-1], reads[record[1]].body(record[-1])) for record in records)
    if not plan.time:
        return chain.from_iterable(read.items(plan) for read in reads)
    return merge(*(in_time_order(read, plan) for read in reads)) if len(reads) > 1 else in_time_order(reads[0], plan)


def _messages(items: Iterator[Item], kind: str) -> Iterator[Message[Any]]:
    for at, _, _, topic, key, body in items:
        yield Message(topic, body, new_id(), key, at, kind)


# -- from a bus


async def _retained(run: _Run, source: Source, copies: Copies) -> None:
    async with opened(source) as origin:
        bus = inspectable(origin.bus())
        infos = await bus.topics(copies.pattern)
        for info in infos:
            copies.topic_of(info.name)  # what would be refused is refused before anything is published
        total = sum(info.messages for info in infos)
        with Progress("messages", total) as progress, run.told():
            pages = _limited(copies.pages(bus, total), run.limit)
            if run.dry_run:
                async for page in pages:
                    for message in page:
                        run.count(message.topic, message.time)
                    progress(run.total, run.total)
                return
            async with opened(run.target, create=True) as app:
                async for page in pages:
                    await run.publish(app, page)
                    progress(run.total, run.total)


async def _limited(pages: AsyncIterator[list[Message[Any]]], left: int | None) -> AsyncIterator[list[Message[Any]]]:
    async for page in pages:
        yield page[:left]
        if left is not None and (left := left - len(page)) <= 0:
            return


# -- publishing


class _Run:
    """What was published, or would be. ``speed``: times as fast as it happened."""

    def __init__(self, target: Source, speed: float | None, limit: int | None, dry_run: bool) -> None:
        self.target, self.speed, self.limit, self.dry_run = target, speed, limit, dry_run
        self.total = self.skipped = 0
        self.topics = Counter[str]()
        self.span: tuple[float, float] | None = None  # the first and the last time of what was counted
        self.began = time.monotonic()
        self.start: tuple[float, float] | None = None  # when the first was published, and when it happened

    def count(self, topic: str, at: float) -> None:
        self.total += 1
        self.topics[topic] += 1
        self.span = (at, at) if self.span is None else (min(self.span[0], at), max(self.span[1], at))

    async def publish(self, app: App, messages: list[Message[Any]]) -> None:
        """Publish all, each when it is due."""
        while self.speed is not None and messages:
            now = time.monotonic()
            first = messages[0].time
            began, origin = self.start = self.start or (now, first)
            if (wait := (first - origin) / self.speed - (now - began)) > 0:
                await asyncio.sleep(wait)
                continue
            horizon = origin + (now - began) * self.speed
            due = next((n for n, message in enumerate(messages) if message.time > horizon), len(messages))
            await self._send(app, messages[:due])
            messages = messages[due:]
        if messages:
            await self._send(app, messages)

    async def _send(self, app: App, messages: list[Message[Any]]) -> None:
        """To the end, also when interrupted: what is told was published, and no more than that."""
        sending = asyncio.ensure_future(app.publish_many(messages))
        try:
            try:
                await asyncio.shield(sending)
            except asyncio.CancelledError:
                await sending
                self.total += len(messages)
                raise
        except PublishFailed as error:
            self.total += len(error.accepted)
            raise
        self.total += len(messages)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What ends it early does not hide what was done before."""
        try:
            yield
        except (TidingsError, asyncio.CancelledError):
            if self.total and not self.dry_run:
                show.warn(f"{self.total:,} messages were published before that")
            raise

    def tell(self, topic: str, json: bool) -> None:
        took = time.monotonic() - self.began
        if json:
            counted = {"would_publish": self.total, "topics": dict(self.topics)} if self.dry_run else {}
            done = {"published": 0 if self.dry_run else self.total, "dry_run": self.dry_run, **counted}
            span = {"first": show.stamp(self.span[0]), "last": show.stamp(self.span[1])} if self.span else {}
            about = {"tdgtopic": topic, "seconds": round(took, 3), "url": str(self.target)}
            show.document({**done, "skipped": self.skipped, **span, **about})
            return
        skipped = f"; {self.skipped:,} line{'s' * (self.skipped != 1)} could not be read" if self.skipped else ""
        messages = f"{self.total:,} message{'s' * (self.total != 1)}"
        if self.dry_run:
            period = f", {show.stamp(self.span[0])} to {show.stamp(self.span[1])}" if self.span and self.span[1] else ""
            show.say(f"would publish {messages} to {topic} on {self.target}{period}{skipped}")
            for name, count in self.topics.most_common(MOST):
                show.say(f"{count:>11,}  {name}")
            if (more := len(self.topics) - MOST) > 0:
                show.say(f"and to {more:,} more topics")
        else:
            rate = f" ({self.total / took:,.0f}/s)" if self.speed is None and self.total >= BATCH else ""
            show.say(f"published {messages} to {topic} on {self.target} in {took:.1f} s{rate}{skipped}")
