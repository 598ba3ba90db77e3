"""Printing: tables, lines, JSON, errors. Nothing that came over the bus can reach a terminal's control sequences."""

from __future__ import annotations

import math
import os
import shutil
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec

from tidings.kernel.errors import PACKAGE, TidingsError
from tidings.kernel.message import Message
from tidings.transports._wire import data

if TYPE_CHECKING:
    from rich.table import Table

RED, GREEN, YELLOW, CYAN, BOLD, DIM = "31", "32", "33", "36", "1", "2"

# -- styles and lines


def terminal(stream: TextIO) -> bool:
    return stream.isatty()


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """``text`` in an ANSI style, where the stream (default: stdout) shows colours."""
    stream = stream or sys.stdout
    plain = not style or not terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{style}m{text}\033[0m"


def say(text: str) -> None:
    """A result, at once."""
    print(text, flush=True)


def note(text: str) -> None:
    """Something about the work, on stderr."""
    print(styled(text, DIM, sys.stderr), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    print(f"{styled('warning:', YELLOW, sys.stderr)} {text}", file=sys.stderr, flush=True)


def clean(text: str, keep: str = "") -> str:
    """Printable text: control characters and lone surrogates as escapes, those in ``keep`` as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def document(value: Any) -> None:
    """One JSON document: indented on a terminal, one line in a pipe."""
    encoded = msgspec.json.encode(value)
    say((msgspec.json.format(encoded) if terminal(sys.stdout) else encoded).decode())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Rows under headings: a table on a terminal, aligned lines in a pipe. ``right``: columns of numbers."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if terminal(sys.stdout):
        from rich.console import Console

        Console(highlight=False).print(drawn(columns, cells, right))
        return
    lines = [
        [column.upper().replace(" ", "_") for column in columns],
        *[[cell or "-" for cell in row] for row in cells],
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        say("  ".join(padded).rstrip())


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """A table for a terminal; its cells are ``clean``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), show_edge=False)
    for number, column in enumerate(columns):
        style, least = "", None
        if not number:  # names are the last to be folded
            style, widest = "cyan", max(map(len, (column, *(row[0] for row in rows))))
            least = min(widest, shutil.get_terminal_size().columns // 3)
        justify: Literal["right", "left"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, style=style, overflow="fold", min_width=least)
    for row in rows:
        alarming = {column for column, cell in zip(columns, row, strict=True) if column == "dead" and cell != "0"}
        table.add_row(
            *(
                Text(cell, style="red" if column in alarming else "dim" if cell == "0" else "")
                for column, cell in zip(columns, row, strict=True)
            )
        )
    return table


@contextmanager
def live() -> Iterator[Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[str]], None]]:
    """Yields a ``table`` that is drawn over the one before, on a terminal."""
    if not terminal(sys.stdout):
        yield table
        return
    from rich.console import Console
    from rich.live import Live

    def draw(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
        view.update(drawn(columns, [[clean(cell) for cell in row] for row in rows], right), refresh=True)

    with Live(console=Console(highlight=False), auto_refresh=False) as view:
        yield draw


# -- times


def stamp(at: float | None) -> str | None:
    """RFC 3339, UTC, in milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at: float) -> str:
    """Local time: short on a terminal for today, in full otherwise."""
    local = datetime.fromtimestamp(at).astimezone()
    if not terminal(sys.stdout):
        return local.isoformat(timespec="milliseconds")
    today = local.date() == datetime.now().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S") + f".{local.microsecond // 1000:03d}"


def ago(at: float | None) -> str:
    """An age, as a span."""
    return "" if at is None else span(time.time() - at)


def span(seconds: float) -> str:
    """A length of time in its two largest units: ``3d 4h``."""
    left, parts = max(0, math.floor(seconds)), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


# -- messages


def body_line(message: Message[Any]) -> str:
    """The body on one line."""
    found = data(message).get("data")
    if isinstance(found, msgspec.Raw):
        return clean(msgspec.json.format(bytes(found), indent=-1).decode())
    if isinstance(found, str):
        return clean(found)
    if not message.body:
        return ""
    head = message.body[:24]
    text = head.decode("latin-1") if all(32 <= byte < 127 for byte in head) else head.hex(" ")
    kind = clean(message.content_type) or "no content type"
    return f"<{len(message.body):,} bytes, {kind}: {text}{'…' * (head != message.body)}>"


def body_pretty(message: Message[Any]) -> str:
    """The body on as many lines as it takes."""
    found = data(message).get("data")
    if isinstance(found, msgspec.Raw):
        return clean(msgspec.json.format(bytes(found), indent=2).decode(), "\n")
    return clean(found, "\n\t") if isinstance(found, str) else body_line(message)


def message(message: Message[Any]) -> None:
    """A stored message: a heading and its body on a terminal, a line with its id in a pipe."""
    key = clean(message.key) if message.key is not None else ""
    head = [styled(clock(message.time), DIM), styled(clean(message.destination), CYAN), styled(key or "-", YELLOW)]
    line, id = body_line(message), styled(clean(message.id), DIM)
    if not terminal(sys.stdout):
        say("  ".join([*head, id, line]))
        return
    say("  ".join([*head, id]))
    for name, value in ((name, value) for name, value in message.headers or () if name != "tdgtraceback"):
        say(f"  {styled(clean(name) + ':', DIM)} {clean(value)}")
    body = line if len(line) < shutil.get_terminal_size().columns - 2 else body_pretty(message)
    say("\n".join(f"  {part}" for part in body.split("\n")))


def event(message: Message[Any]) -> dict[str, Any]:
    """A message under CloudEvents names (``docs/wire.md``); what it does not have is left out."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": message.id,
        "source": message.source,
        "type": message.type,
        "time": stamp(message.time),
        "datacontenttype": message.content_type,
        "partitionkey": message.key,
        "correlationid": message.correlation_id,
        "causationid": message.causation_id,
        "expirytime": stamp(message.expires_at),
        "tdgtopic": message.topic,
        "tdgaddress": message.address,
        "tdgdeliverytime": stamp(message.deliver_at),
        "tdgpriority": message.priority or None,
        "tdgreplyto": message.reply_to,
        "headers": dict(message.headers) if message.headers else None,
    }
    return {name: value for name, value in attributes.items() if value not in (None, "")} | data(message)


# -- errors


class UserCodeFailed(Exception):
    """The user's own code raised; ``error`` is what it raised."""

    def __init__(self, doing: str, error: BaseException) -> None:
        super().__init__(doing)
        self.doing, self.error = doing, error


def error(shape: TidingsError, as_json: bool = False) -> None:
    """An error in its one shape, on stderr."""
    where = "" if internal(shape.where.rpartition(":")[0]) else shape.where
    said = {"code": shape.code, "what": shape.what, "where": where, "why": shape.why, "mend": shape.mend}
    if as_json:
        print(msgspec.json.encode({"error": {k: v for k, v in said.items() if v}}).decode(), file=sys.stderr)
        return
    print(f"{styled(shape.code, RED, sys.stderr)}: {clean(shape.what, chr(10))}", file=sys.stderr)
    for name in ("where", "why", "mend"):
        if said[name]:
            label = styled(f"{name + ':':<7}", BOLD, sys.stderr)
            print(f"  {label}{clean(said[name], chr(10))}", file=sys.stderr)
    if terminal(sys.stderr) and shape.code != TidingsError.code:
        note(f"  more:  tidings explain {shape.code}")


# What an app of Celery or FastStream has.
ELSEWHERE = {
    "task": "@app.on(topic)",
    "subscriber": "@app.on(topic)",
    "publisher": "@app.on(topic, to=other), or return other(payload)",
    "send_task": "await app.publish(topic, payload)",
}


def user_code_failed(failed: UserCodeFailed, as_json: bool = False) -> None:
    """The user's frames first, then what it was, then what we were doing."""
    frames = user_frames(failed.error)
    what = "".join(traceback.format_exception_only(failed.error)).rstrip()
    if as_json:
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        error(TidingsError(f"{failed.doing}: {what}", where=where), as_json)
        return
    for line in traceback.format_list(frames):
        print(clean(line.rstrip("\n"), "\n"), file=sys.stderr)
    print(f"{styled(clean(what, chr(10)), RED, sys.stderr)}\n{failed.doing}", file=sys.stderr)
    if here := _here(failed.error):
        print(f"  {styled('mend:', BOLD, sys.stderr)}  here it is {here}", file=sys.stderr)


def _here(error: BaseException) -> str:
    """What an app has instead of what was looked for in it, or ``""``."""
    from tidings import App

    if isinstance(error, AttributeError) and isinstance(error.obj, App):
        return ELSEWHERE.get(error.name or "", "")
    return ""


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an error from the first one of the user's on; none if nothing of the user's was running."""
    frames = dropwhile(lambda frame: internal(frame.filename), traceback.extract_tb(error.__traceback__))
    return [frame for frame in frames if not frame.filename.startswith("<frozen")]


def internal(filename: str) -> bool:
    """Whether a file is no concern of the user's: ours, the standard library's, the parser's, the script we are."""
    if filename.startswith("<frozen") or filename in ("", sys.argv[0]):
        return True
    standard = (sysconfig.get_path("stdlib"), str(Path(os.__file__).parent))
    return filename.startswith(PACKAGE) or (
        "/site-packages/cyclopts/" in filename or (filename.startswith(standard) and "site-packages" not in filename)
    )


def traceback_of(error: BaseException) -> None:
    traceback.print_exception(error.error if isinstance(error, UserCodeFailed) else error, file=sys.stderr)
