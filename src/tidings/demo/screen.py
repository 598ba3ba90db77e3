"""The demo on a terminal: one picture of a ``Snapshot``, as large as the terminal is.

It is painted over the last one, on the ordinary screen and with the cursor left alone: a process that is killed with
``kill -9`` cannot tidy up after itself, and this one is made to be killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidings import untoken

from .board import Row, Snapshot
from .sensors import Reading

WIDE = 100  # columns from which there is room for everything
HIDDEN = ("alarm", "mourn")  # handlers that only serve this screen
COLOURS = {"critical": "bold red", "warning": "yellow", "notice": "cyan"}
KINDS = ("core", "memory", "net", "disk", "program", "uptime", "storage", "chip", "swap")  # where there is little room
ORDER = ("core", "program", "memory", "swap", "storage", "disk", "net", "uptime", "chip")
FOOT = 2  # rows
SILENT = 5.0  # seconds after which a series is no longer shown
BARS = "▁▂▃▄▅▆▇█"


class Screen:
    """Paints snapshots. Drawing takes milliseconds, and a terminal may block: so in a thread."""

    interval = 0.5

    def __init__(self, console: Console) -> None:
        self.console = console
        console.file.write("\n" * console.height)  # what was there stays in the scrollback

    async def show(self, snapshot: Snapshot) -> None:
        await asyncio.to_thread(self.paint, snapshot)

    def end(self, snapshot: Snapshot, published: Mapping[str, int], left: int) -> None:
        """The last words, below the last picture."""
        alerts, handled = sum(snapshot.severities.values()), sum(row.handled for row in snapshot.rows)
        print(
            f"\n stopped after {clock(snapshot.elapsed)}: {sum(published.values()):,} published, {handled:,} handled,"
            f"\n {alerts:,} alerts, {snapshot.dead:,} dead letters; {left:,} messages wait for the next start"
        )

    def paint(self, snapshot: Snapshot) -> None:
        """Over the last picture, without flicker."""
        console = self.console
        width, height = console.size
        with console.capture() as captured:
            console.print(picture(snapshot, width, height - 1), height=height - 1, end="")
        lines = captured.get().splitlines()[: height - 1]
        console.file.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        console.file.flush()


def picture(snapshot: Snapshot, width: int, height: int) -> RenderableType:
    """Everything, in this many columns and rows."""
    rows = [row for row in snapshot.rows if row.name not in HIDDEN]
    top = 3 if height >= 30 else 2
    above = top + len(rows) + 2
    right, room = min(64, width // 2), max(3, height - above - FOOT)
    layout, below, beside = Layout(), Layout(size=room), Layout(size=right)
    grave = _letters(snapshot)
    beside.split_column(
        Layout(_titled(_counted(snapshot), Group(*_alerts(snapshot, max(1, room - 7))))),
        Layout(grave, size=min(5, room - 3)),
    )
    below.split_row(Layout(_machine(snapshot, width - right - 4, room - 2)), beside)
    layout.split_column(
        Layout(_head(snapshot, width), size=top),
        Layout(_handlers(rows, width), size=len(rows) + 2),
        below,
        Layout(_foot(snapshot), size=FOOT),
    )
    return layout


def _titled(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=f"[bold]{title}", title_align="left", border_style="dim", padding=(0, 1))


def _head(snapshot: Snapshot, width: int) -> RenderableType:
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    name = Text.assemble((" tidings demo ", "bold black on cyan"), "  ", (snapshot.bus, "cyan"))
    head.add_row(name, Text(f"up {clock(snapshot.elapsed)} ", "bold"))
    found = Text(f" {welcome(snapshot.recovered, snapshot.waiting)}", "green" if snapshot.recovered else "default")
    numbers = [f"{snapshot.published:,} published", f"{snapshot.rate:.0f}/s", f"p99 {span(snapshot.p99)} "]
    head.add_row(found, Text(" · ".join(numbers[-2 if width < WIDE else 0 :])))
    return head


def _handlers(rows: Sequence[Row], width: int) -> RenderableType:
    wide = width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    table.add_column(" handler", no_wrap=True, style="bold")
    table.add_column("takes → gives", no_wrap=True, overflow="ellipsis", ratio=1)
    if wide:
        table.add_column("runs in", no_wrap=True, style="dim")
    for title, least in (("rate/s", 6), ("handled", 7), ("lag", 4), ("p50", 7), ("p99", 7), ("dead", 4)):
        table.add_column(title, justify="right", no_wrap=True, min_width=least)
    for row in rows:
        dark = "dim"
        numbers = (
            Text(f"{row.rate:.1f}", "default" if row.rate else dark),
            Text(f"{row.handled:,}"),
            Text("–" if row.lag is None else f"{row.lag:,}", "yellow" if (row.lag or 0) > 100 else "default"),
            Text(span(row.p50), "default" if row.p50 is not None else dark),
            Text(span(row.p99), "default" if row.p99 is not None else dark),
            Text(f"{row.dead:,}" if row.dead else "–", "bold red" if row.dead else dark),
        )
        flow = Text.assemble(row.takes, (" → ", dark), (", ".join(row.gives) or _nothing(row), "cyan"))
        table.add_row(f" {row.name}", flow, *([row.runs] if wide else []), *numbers)
    return table


def _nothing(row: Row) -> str:
    return "the screen" if row.runs == "live" else "replies" if row.takes == "requests" else "…"


def _machine(snapshot: Snapshot, width: int, rows: int) -> RenderableType:
    """The readings that fit, each with its trail."""
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    name, number = 18 if width < 46 else 24, 9
    trail = max(4, width - name - number - 2)
    table.add_column(no_wrap=True, overflow="ellipsis", width=name)
    table.add_column(no_wrap=True, width=trail)
    table.add_column(no_wrap=True, justify="right", width=number)
    for reading, values in chosen(snapshot.readings, rows):
        table.add_row(named(reading), Text(bars(values[-trail:], reading.unit), _heat(reading)), amount(reading))
    return _titled("this machine", table)


def _heat(reading: Reading) -> str:
    if reading.unit != "%" or reading.value < 60:
        return "green"
    return "red" if reading.value >= 85 else "yellow"


def chosen(readings: Iterable[tuple[Reading, Sequence[float]]], rows: int) -> list[tuple[Reading, Sequence[float]]]:
    """As many as there is room for: something of everything before all of anything, and nothing that fell silent."""
    newest = max((reading.time for reading, _ in readings), default=0.0)
    kinds: dict[str, list[tuple[Reading, Sequence[float]]]] = {kind: [] for kind in KINDS}
    for reading, values in readings:
        if newest - reading.time < SILENT:
            kinds.setdefault(reading.device.partition("-")[0], []).append((reading, values))
    for kind, same in kinds.items():  # programs come and go by their load; all others keep their place
        same.sort(key=lambda item: (-item[0].value if kind == "program" else len(item[0].series), item[0].series))
    taken: dict[str, int] = dict.fromkeys(kinds, 0)
    while sum(taken.values()) < rows and (open_ := [k for k in kinds if taken[k] < len(kinds[k])]):
        for kind in open_[: rows - sum(taken.values())]:
            taken[kind] += 1
    order = [kind for kind in (*ORDER, *kinds) if taken.get(kind)]
    return [item for kind in dict.fromkeys(order) for item in kinds[kind][: taken[kind]]]


def _counted(snapshot: Snapshot) -> str:
    counts = [f"{n:,} {severity}" for severity in COLOURS if (n := snapshot.severities.get(severity, 0))]
    return "alerts" + (": " + ", ".join(counts) if counts else "")


def _alerts(snapshot: Snapshot, rows: int) -> list[Text]:
    if not snapshot.alerts:
        return [Text("none yet; give it some work:", "dim"), Text("timeout 5 yes > /dev/null", "dim")]
    lines = []
    for severity, found in list(snapshot.alerts)[: -rows - 1 : -1]:
        reading = found.reading
        what = f"{named(reading)} {amount(reading)}"
        style, at = COLOURS.get(severity, "default"), time.strftime("%H:%M:%S", time.localtime(reading.time))
        lines.append(Text.assemble((f"{at} ", "dim"), (f"{severity:<9}", style), what, no_wrap=True))
        lines[-1].overflow = "ellipsis"
    return lines


def _letters(snapshot: Snapshot) -> RenderableType:
    if not snapshot.letters and not snapshot.dead:
        return _titled("dead letters", Text("none yet", "dim"))
    last = snapshot.letters[-1].header("tdgdetail") if snapshot.letters else "of an earlier run"
    lines = [Text(last), Text("tidings dead ls", "cyan"), Text("tidings dead replay --all", "cyan")]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return _titled(f"dead letters: {snapshot.dead}", Group(*lines))


def _foot(snapshot: Snapshot) -> RenderableType:
    tries = f"try: kill -9 {snapshot.pid}, and start it again · a second demo beside this one"
    lines = [(f" {snapshot.said}", "yellow") if snapshot.said else (f" {tries}", "dim")]
    if snapshot.url:
        lines.append((f" export TIDINGS_URL={snapshot.url}; tidings request sensors.summary", "dim"))
    return Group(*(Text(line, style, no_wrap=True, overflow="ellipsis") for line, style in lines))


def welcome(recovered: int, waiting: int) -> str:
    """What a start found."""
    if not recovered and not waiting:
        return "nothing was waiting"
    return f"recovered {recovered:,} messages of a process that died, {waiting:,} were waiting"


def span(seconds: float | None) -> str:
    """A latency in few characters."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.0995 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def amount(reading: Reading) -> str:
    """A value with its unit."""
    value, unit = reading.value, reading.unit
    if unit == "B/s":
        for prefix in ("", "k", "M"):
            if value < 999.5:
                return f"{value:.0f} {prefix}B/s"
            value /= 1000
        return f"{value:.1f} GB/s"
    return f"{value:.0f} %" if unit == "%" else f"{value:.0f} °C" if unit == "C" else f"{value:.2f} {unit}".rstrip()


def named(reading: Reading) -> str:
    """A series for people: ``program-cc1`` is of the kind ``program``, which goes without saying."""
    return f"{untoken(reading.device).removeprefix('program-')} {reading.quantity}"


def bars(values: Sequence[float], unit: str) -> str:
    """A curve of one character a value; percentages against 100, others against their largest."""
    most = 100.0 if unit == "%" else max(values, default=0.0)
    return "".join(BARS[min(len(BARS) - 1, int(value / most * len(BARS)))] if most > 0 else BARS[0] for value in values)
