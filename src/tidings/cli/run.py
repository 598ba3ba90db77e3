"""``tidings run``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from tidings import App
from tidings.assembly import group_of
from tidings.kernel.errors import TidingsError
from tidings.kernel.settling import Stats
from tidings.router import Registration
from tidings.schedule import Cron, Interval

from . import show
from ._bus import Source, configured
from ._options import Json, Url
from ._target import find_app

SWITCH = 0.0005  # seconds; beside a CPU-bound thread the loop gets its turn five times sooner


def run(
    target: Annotated[str, Parameter(name="APP", help="module:app, module, or path/to/file.py:app")],
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Run an app: all its handlers, until SIGTERM or Ctrl-C; then drain.

    Run it as often as you like, side by side: the processes share the work. Its log goes to stderr.
    """
    sys.setswitchinterval(SWITCH)
    app = find_app(target)
    level = os.environ.get("TIDINGS_LOG", "INFO").upper()
    known = logging.getLevelNamesMapping()
    logging.basicConfig(
        level=known.get(level, logging.INFO), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    if (source := configured(url)) is not None:
        source.options()
        if source.origin != "TIDINGS_URL":
            app.use(source.url)
    try:
        asyncio.run(_serve(app, source or Source(app.urls[""], target), json))
    except TidingsError:
        raise
    except Exception as error:
        if show.user_frames(error):
            raise show.UserCodeFailed(f"running {target} failed", error) from error
        raise


async def _serve(app: App, source: Source, json: bool) -> None:
    stats: dict[str, Stats] = {}
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # serve() does it too, but only once it has said what it listens to
        loop.add_signal_handler(number, app.stop)

    def ready() -> None:
        stats.update(app.stats())
        _tell(app, source, json)

    await app.serve(ready)
    totals = {
        name: value for name in Stats.__struct_fields__ if (value := sum(getattr(s, name) for s in stats.values()))
    }
    if json:
        show.document({"stopped": app.name, **totals})
    else:
        told = ", ".join(f"{value:,} {name}" for name, value in totals.items()) or "nothing to do"
        show.say(f"{app.name} stopped: {told}")


def _tell(app: App, source: Source, json: bool) -> None:
    """Print what is listening: from now on nothing that is published is missed."""
    buses = {name: str(_source(app, name, source)) for name in app.urls}
    rows = [_described(app, registration) for registration in app.registrations]
    if json:
        show.document({"app": app.name, "pid": os.getpid(), "buses": buses, "handlers": rows})
        return
    show.say(f"{show.styled(app.name, show.BOLD)} listens on {buses['']} (process {os.getpid()})")
    for name, url in buses.items():
        if name:
            show.say(f"  and, as {name!r}, on {url}")
    show.table(
        ("group", "listens to", "handler"), [[r["group"] or r["kind"], r["pattern"], r["handler"]] for r in rows]
    )


def _source(app: App, name: str, default: Source) -> Source:
    if not name:
        return default
    variable = f"TIDINGS_URL_{name.upper()}"
    return Source(os.environ.get(variable) or app.urls[name], variable)


def _described(app: App, r: Registration) -> dict[str, Any]:
    kind = "each" if r.each else "live" if r.live else {"on": "group", "answer": "service", "tick": "tick"}[r.role]
    pattern = _told_schedule(r.schedule) if r.role == "tick" else r.template
    where = r.where.rpartition("/")[2]
    group = "" if r.live or r.each else group_of(r, app.name)
    return {"kind": kind, "group": group, "pattern": pattern, "handler": f"{r.fn.__qualname__} ({where})", "bus": r.bus}


def _told_schedule(schedule: Any) -> str:
    if isinstance(schedule, Interval):
        return f"every {schedule.interval:g} s"
    return f"{schedule.expression} {schedule.tz}" if isinstance(schedule, Cron) else str(schedule)
