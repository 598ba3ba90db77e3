"""Records of files, CSV or JSON Lines, compressed or not, as what is to be published: in time order, one by one."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from tidings.kernel.errors import InvalidName, InvalidOption, PayloadRefused, nearest
from tidings.kernel.topics import check_topic, token

from . import STDIN

MOST = 65_536  # values that are remembered
LONG = 64  # characters; longer ones seldom come again
FIELD = 16 * 2**20  # bytes of one field
DIGITS = 18  # of an integer; any such one fits into 64 bits
DELIMITERS = ",;\t|"
CODES = "YmdHMS"  # of a time's format: the numbers that datetime takes

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
PLACE = re.compile(r"\{([^{}]+)\}")


Item = tuple[float, int, int, str, str | None, bytes]
"""A record: its time, file and line (compared in this order); topic, key and body of what is published.

To be sorted (``Plan.sort``), it has the record as it stands in its file for a body: nothing is published until all are
read, and ``Read.body`` can make the body later, while those before it are published.
"""


class Refused(Exception):
    """What is wrong with a record."""


class Plan(Struct, kw_only=True):
    """What becomes of a record. ``topic`` may hold ``{column}``; a time without a zone is in ``zone``."""

    topic: str
    key: str | None = None
    time: Sequence[str] = ()
    time_format: str | None = None
    zone: tzinfo = UTC
    null: Sequence[str] = ()
    text: bool = False
    sort: bool = False
    skip_bad: bool = False
    skipped: int = 0
    times: Any = None  # what was read before, for all files
    topics: Any = None
    values: Any = None

    def __post_init__(self) -> None:
        self.times, self.topics, self.values = Memo(moment(self)), Memo(filled(self.topic)), Memo(_value(self))

    def bad(self, file: str, line: int, why: str) -> None:
        """Count a record that cannot be published; raises ``PayloadRefused`` where they are not to be skipped."""
        if not self.skip_bad:
            mend = "mend it; --skip-bad leaves out such lines and counts them"
            raise PayloadRefused(f"{file}, line {line:,}: {why}", mend=mend)
        self.skipped += 1


class Memo(dict[Any, Any]):
    """What a function returned: values of real data come again and again."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute

    def __missing__(self, given: Any) -> Any:
        found = self.compute(given)
        if len(given) <= LONG:
            if len(self) >= MOST:
                self.clear()
            self[given] = found
        return found


class Read:
    """An open file of records. ``position`` and ``size`` are of the file as it is, compressed or not."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = ("standard input" if name == STDIN else name), number
        try:
            self.raw = io.FileIO(os.dup(0) if name == STDIN else name)
        except OSError as error:
            why = error.strerror or str(error)
            mend = "" if os.path.exists(name) else _beside(name)
            raise InvalidOption(f"{self.name} cannot be read", why=why, mend=mend) from None
        self.size = os.fstat(self.raw.fileno()).st_size
        self.data = io.BufferedReader(self.raw, 2**17)
        self.body: Callable[[bytes], bytes] = bytes  # of a record as it stands; a line of JSON is one

    @property
    def position(self) -> int:
        try:
            return self.raw.tell()
        except (OSError, ValueError):  # a pipe, or closed: all of it was read
            return self.size

    def items(self, plan: Plan) -> Iterator[Item]:
        """Its records, as they stand in it. Raises ``PayloadRefused``."""
        try:
            if self.data.peek(2)[:2] == b"\x1f\x8b":
                unpacked: Any = gzip.GzipFile(fileobj=self.data)
                self.data = io.BufferedReader(unpacked, 2**17)
            head = self.data.peek(4).removeprefix(b"\xef\xbb\xbf").lstrip()
            if head.startswith(b"["):
                mend = f"one record a line: jq -c '.[]' {self.name} | tidings replay - …"
                raise PayloadRefused(f"{self.name} is a JSON array", mend=mend)
            yield from _json_lines(self, plan) if head.startswith(b"{") else _csv(self, plan)
        except (OSError, EOFError, zlib.error) as error:
            raise PayloadRefused(f"{self.name} cannot be read to its end", why=str(error)) from None
        finally:
            self.data.close()
            self.raw.close()


def _beside(name: str) -> str:
    folder, base = os.path.split(name)
    try:
        return nearest(base, os.listdir(folder or "."))
    except OSError:
        return ""


# -- what a record says


def moment(plan: Plan) -> Callable[[Any], float]:
    """Unix seconds of a text, or of several: year, month, day and so on, or a date and a time."""
    parse = _moment if plan.time_format is None else _formatted(plan.time_format)

    def read(given: Any) -> float:
        parts = (given,) if isinstance(given, str) else given
        try:
            at = parse(parts)
            return at if isinstance(at, float) else (at if at.tzinfo else at.replace(tzinfo=plan.zone)).timestamp()
        except (ValueError, OverflowError, re.error):
            raise Refused(f"{' '.join(parts)!r} is no time; --time-format says how to read it") from None

    return read


def _formatted(form: str) -> Callable[[Sequence[str]], datetime]:
    """What ``strptime`` reads; of numbers with something between them, three times as fast."""
    parts = re.split("%(.)", form)
    codes, between = parts[1::2], parts[2:-1:2]
    order = CODES[: max(3, len(codes))]
    if sorted(codes) != sorted(order) or not all(re.fullmatch(r"\D+", text) for text in between):
        return lambda given: datetime.strptime(" ".join(given), form)
    groups = [codes.index(code) + 1 for code in order]
    shape = re.sub("%.", r"(\\d\\d?)", re.escape(form).replace("%Y", r"(\d{4})"))
    match = re.compile(shape).fullmatch

    def read(given: Sequence[str]) -> datetime:
        text = " ".join(given)
        found = match(text)
        if found is None:
            return datetime.strptime(text, form)
        return datetime(*map(int, found.group(*groups)))  # type: ignore[arg-type]

    return read


def _moment(parts: Sequence[str]) -> float | datetime:
    if len(parts) > 1 and all(part.isdigit() for part in parts):
        numbers = [*map(int, parts), 1, 1]
        return datetime(*numbers[: max(3, len(parts))])  # type: ignore[arg-type]
    if len(parts) == 1 and NUMBER.fullmatch(parts[0]):
        seconds = float(parts[0])
        if not math.isfinite(seconds):
            raise ValueError
        return seconds / 1000 if abs(seconds) >= 1e11 else seconds  # milliseconds; 1e11 s is the year 5138
    return datetime.fromisoformat(" ".join(parts))


def filled(template: str) -> Callable[[Any], str]:
    """A topic from the values of its columns, each made a valid token."""
    literal = PLACE.sub("{}", template)

    def fill(given: Any) -> str:
        try:
            return literal.format(*map(token, (given,) if isinstance(given, str) else given))
        except InvalidName:
            columns = ", ".join(PLACE.findall(template))
            raise Refused(f"no topic can be made of {columns}: a value is empty, or no UTF-8") from None

    return fill


def _reader(pick: Callable[[Sequence[str]], Callable[[Any], Any]], plan: Plan) -> Callable[[Any], Any]:
    """A function from a record to its (time, topic, key). ``pick`` makes one that gets columns of it."""
    columns = PLACE.findall(plan.topic)
    at, times = pick(plan.time) if plan.time else None, plan.times
    where, topics = pick(columns) if columns else None, plan.topics
    key_of, none = pick([plan.key]) if plan.key is not None else None, {"", *plan.null}

    def read(row: Any) -> tuple[float, str, str | None]:
        key = None if key_of is None else key_of(row)
        return (
            times[at(row)] if at else 0.0,
            topics[where(row)] if where else plan.topic,
            None if key in none else key,
        )

    return read


# -- CSV


def _csv(file: Read, plan: Plan) -> Iterator[Item]:
    text = io.TextIOWrapper(file.data, "utf-8-sig", "surrogateescape", newline="")
    first = text.readline()
    delimiter = max(DELIMITERS, key=first.count)  # of equals the first, so a comma where there is none
    csv.field_size_limit(FIELD)
    heading = next(csv.reader([first], delimiter=delimiter), [])
    if why := _wrong_with(heading):
        raise PayloadRefused(f"{file.name} has no usable heading", why=why, mend="its first line names the columns")
    lines = list[str]()  # of the record that is read, if they are to be kept
    rows = csv.reader(_noted(text, lines) if plan.sort else text, delimiter=delimiter)
    read, form = _reader(_columns(file, heading), plan), _object(heading, plan)
    number, width = file.number, len(heading)
    file.body = lambda record: form(_row(record.decode(), delimiter))
    try:
        for row in rows:
            record = "".join(lines)
            lines.clear()
            try:
                if len(row) != width:
                    if not row:
                        continue
                    raise Refused(f"it has {len(row)} fields, and the heading {width}")
                at, topic, key = read(row)
                data = record.encode() if plan.sort else form(row)
            except Refused as wrong:
                plan.bad(file.name, rows.line_num + 1, str(wrong))
            except UnicodeEncodeError:
                plan.bad(file.name, rows.line_num + 1, "it is no UTF-8")
            else:
                yield at, number, rows.line_num + 1, topic, key, data
    except csv.Error as error:
        raise PayloadRefused(f"{file.name}, line {rows.line_num + 1:,}: {error}") from None


def _noted(text: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in text:
        lines.append(line)
        yield line


def _row(record: str, delimiter: str) -> list[str]:
    """The fields of a record that ``csv`` has read before; without quotes, splitting takes a third of the time."""
    return next(csv.reader((record,), delimiter=delimiter)) if '"' in record else record.rstrip("\r\n").split(delimiter)


def _object(heading: Sequence[str], plan: Plan) -> Callable[[Sequence[str]], bytes]:
    """A function from a row to a JSON object."""
    parts = [""] * (2 * len(heading)) + ["}"]
    parts[:-1:2] = [("," if n else "{") + msgspec.json.encode(name).decode() + ":" for n, name in enumerate(heading)]
    value = plan.values.__getitem__

    def form(row: Sequence[str]) -> bytes:
        parts[1::2] = map(value, row)
        return "".join(parts).encode()

    return form


def _wrong_with(heading: Sequence[str]) -> str:
    twice = [name for name in heading if heading.count(name) > 1]
    if twice:
        return f"it has two columns {twice[0]!r}"
    if any("\ud800" <= character <= "\udfff" for character in "".join(heading)):
        return "it is no UTF-8"
    return "" if heading else "it is empty"


def _columns(file: Read, heading: list[str]) -> Callable[[Sequence[str]], Callable[[Any], Any]]:
    def pick(names: Sequence[str]) -> Callable[[Any], Any]:
        for name in names:
            if name not in heading:
                mend = nearest(name, heading) or f"it has {', '.join(heading)}"
                raise InvalidOption(f"{file.name} has no column {name!r}", mend=mend)
        return itemgetter(*map(heading.index, names))

    return pick


def _value(plan: Plan) -> Callable[[str], str]:
    """A field as JSON: a number exactly as it is written, true, false, null where it is empty; anything else as text.
    Raises ``UnicodeEncodeError`` for what was no UTF-8.

    ``0045`` is no number of JSON's, so it stays text; so does what readers could not hold as one (``_number``).
    """
    none = {"", *plan.null}

    def read(field: str) -> str:
        if field in none:
            return "null"
        if not plan.text and (_number(field) or field in ("true", "false")):
            return field
        return msgspec.json.encode(field).decode()

    return read


def _number(field: str) -> bool:
    """Whether a field is a number to every reader: no infinity, and no integer that would lose its last digits."""
    found = NUMBER.fullmatch(field)
    if found is None or not math.isfinite(float(field)):
        return False
    return found[2] is not None or found[3] is not None or len(found[1]) <= DIGITS


# -- JSON Lines


def _json_lines(file: Read, plan: Plan) -> Iterator[Item]:
    read, decode, number = _reader(_fields, plan), msgspec.json.Decoder(dict[str, Any]).decode, file.number
    for line, record in enumerate(file.data, 1):
        body = (record.removeprefix(b"\xef\xbb\xbf") if line == 1 else record).strip()
        if not body:
            continue
        try:
            at, topic, key = read(decode(body))
        except Refused as wrong:
            plan.bad(file.name, line, str(wrong))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            plan.bad(file.name, line, f"it is no JSON object: {error}")
        else:
            yield at, number, line, topic, key, body


def _fields(names: Sequence[str]) -> Callable[[Any], Any]:
    def one(record: Any, name: str) -> str:
        found = field(record, name)
        if found is msgspec.UNSET or isinstance(found, dict | list):
            raise Refused(f"it has no text or number {name!r}")
        return "" if found is None else plain(found)

    if len(names) == 1:
        return lambda record: one(record, names[0])
    return lambda record: tuple(one(record, name) for name in names)


def field(record: Any, name: str) -> Any:
    """What ``name`` stands for in decoded JSON, ``order.lines.0`` for what lies deeper; ``UNSET`` if nothing does."""
    if isinstance(record, dict) and name in record:
        return record[name]
    for part in name.split("."):
        if isinstance(record, dict) and part in record:
            record = record[part]
        elif isinstance(record, list) and part.isdigit() and int(part) < len(record):
            record = record[int(part)]
        else:
            return msgspec.UNSET
    return record


def plain(value: Any) -> str:
    """A JSON value as one would type it: text without quotes."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# -- in time order


def in_time_order(file: Read, plan: Plan) -> Iterator[Item]:
    """The records of a file that is in time order. Raises ``PayloadRefused`` at the first that is not."""
    last, before = -math.inf, 0
    for item in file.items(plan):
        if item[0] < last:
            what = f"{file.name}, line {item[2]:,}: it is earlier than line {before:,}"
            raise PayloadRefused(what, mend="--sort sorts the records first (on disk, where they are many)")
        last, before = item[0], item[2]
        yield item


def check_template(template: str) -> str:
    """A topic that may hold ``{column}``; raises ``InvalidName`` for one that no values could make valid."""
    try:
        return check_topic(PLACE.sub("x", template))
    except InvalidName as error:
        error.what = f"--topic cannot be {template!r}: {error.what}"
        raise
