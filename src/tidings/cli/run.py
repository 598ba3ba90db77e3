"""``tidings run``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidings import App
from tidings.assembly import group_of
from tidings.kernel.errors import TidingsError
from tidings.kernel.settling import Stats
from tidings.router import Registration
from tidings.topology.graph import schedule_text

from . import show
from ._bus import Source, configured
from ._failing import tell_failures
from ._options import Json, Target, Url
from ._target import find_app

SWITCH = 0.0005  # seconds; beside a CPU-bound thread the loop gets its turn five times sooner


def run(
    target: Target,
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Run an app: all its handlers, until SIGTERM or Ctrl-C; then drain.

    Run it as often as you like, side by side: the processes share the work. Its log goes to stderr, with what
    handlers raised.
    """
    serve(target, url, json, tell)


def serve(target: str, url: str | None, json: bool, tell: Callable[[App, Source, bool], None]) -> None:
    """Run the app that ``target`` names until a signal; ``tell`` says what listens, once it does."""
    sys.setswitchinterval(SWITCH)
    app = find_app(target)
    level = os.environ.get("TIDINGS_LOG", "INFO").upper()
    known = logging.getLevelNamesMapping()
    logging.basicConfig(
        level=known.get(level, logging.INFO), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    tell_failures(app)
    if (source := configured(url)) is not None:
        source.options()
        if source.origin != "TIDINGS_URL":
            app.use(source.url)
    try:
        asyncio.run(_serve(app, source or Source(app.urls[""], target), json, tell))
    except TidingsError:
        raise
    except asyncio.CancelledError:
        if json:
            show.document({"stopped": app.name})
        else:
            show.say(f"{app.name} stopped before it was connected")
    except Exception as error:
        if show.user_frames(error):
            raise show.UserCodeFailed(f"running {target} failed", error) from error
        raise


async def _serve(app: App, source: Source, json: bool, tell: Callable[[App, Source, bool], None]) -> None:
    stats: dict[str, Stats] = {}
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):  # until app.serve() is connected: nothing needs to be drained yet
        loop.add_signal_handler(number, task.cancel)

    def ready() -> None:
        stats.update(app.stats())
        tell(app, source, json)
        if task.cancelling():  # which was lost on the way
            app.stop()

    try:
        await app.serve(ready)
    except asyncio.CancelledError:
        others = asyncio.all_tasks() - {task}
        while others:  # wait_for() of Python 3.11 may lose a cancellation, and a client then goes on to connect
            for other in others:
                other.cancel()
            _, others = await asyncio.wait(others, timeout=0.1)
        raise
    totals = {
        name: value for name in Stats.__struct_fields__ if (value := sum(getattr(s, name) for s in stats.values()))
    }
    if json:
        show.document({"stopped": app.name, **totals})
    else:
        told = ", ".join(f"{value:,} {name}" for name, value in totals.items()) or "nothing to do"
        show.say(f"{app.name} stopped: {told}")


def tell(app: App, source: Source, json: bool, **more: Any) -> None:
    """Print what is listening: from now on nothing that is published is missed. ``more``: for the JSON document."""
    buses = {name: str(bus_of(app, name, source)) for name in app.urls}
    rows = [_row(app, registration) for registration in app.registrations]
    if json:
        show.document({"app": app.name, "pid": os.getpid(), "buses": buses, "handlers": rows, **more})
        return
    show.say(f"{show.styled(app.name, show.BOLD)} listens on {buses['']} (process {os.getpid()})")
    for name, url in buses.items():
        if name:
            show.say(f"  and, as {name!r}, on {url}")
    show.table(
        ("group", "listens to", "handler"), [[r["group"] or r["kind"], r["pattern"], r["handler"]] for r in rows]
    )


def bus_of(app: App, name: str, default: Source) -> Source:
    """One of an app's buses, as it will be opened."""
    if not name:
        return default
    variable = f"TIDINGS_URL_{name.upper()}"
    return Source(os.environ.get(variable) or app.urls[name], variable)


def _row(app: App, r: Registration) -> dict[str, Any]:
    kind = "each" if r.each else "live" if r.live else {"on": "group", "answer": "service", "tick": "tick"}[r.role]
    pattern = schedule_text(r.schedule) if r.role == "tick" else r.template
    where = r.where.removeprefix(f"{Path.cwd()}/")
    group = "" if r.live or r.each else group_of(r, app.name)
    handler = f"{r.fn.__qualname__} ({where})"
    return {"kind": kind, "group": group, "pattern": pattern, "handler": handler, "where": where, "bus": r.bus}
