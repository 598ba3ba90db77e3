"""``tidings capabilities``."""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from typing import Annotated, Any

from cyclopts import Parameter
from msgspec.structs import asdict

from tidings.kernel.errors import InvalidOption, InvalidURL, MissingExtra
from tidings.kernel.transport import Capabilities, Inspectable, Manageable, Transport
from tidings.schedule import Ticking
from tidings.store import Enlisting
from tidings.urls import options_for

from . import show
from ._bus import Source, configured, file_of, opened
from ._findings import size
from ._options import Json, Url

EXPLAINED = {
    "durable": "what an accepted message survives: loss of power, the death of a process, or neither",
    "ordering": "of one topic's messages within a group, while nothing fails",
    "ordered": "`ordered=True`: key order across all processes of a group, also through failures",
    "delay": "`delay=`, `at=`, and waits between retries: how long, how exact",
    "lease": "what tells the bus that a holder is alive",
    "fence": "what stops a late settlement of a lost session",
    "crash_count": "a message that kills its process is counted, and ends in the dead letters",
    "start": '`start="first"` or a time',
    "replay": "a group can be given again what is retained",
    "dedup": "within which time the same id is stored once",
    "priority": "`priority=`",
    "expiry": "`expires=`",
    "wildcards": "`*` and `>` in patterns",
    "atomic_settle": "outputs and settlement in one transaction",
    "publish_atomic": "`publish_many`: all or none",
    "peek": "stored messages can be looked at without disturbing delivery",
    "provision": "the bus can be set up ahead",
    "stable_id": "a message without an id gets the same one at every delivery",
    "max_payload": "largest message, of which 16 KiB are kept for a dead letter's context",
    "request": "request and reply",
}

PROTOCOLS: dict[str, tuple[Any, str]] = {
    "inspect": (Inspectable, "topics and groups can be listed"),
    "manage": (Manageable, "groups can be renamed, dropped and sought"),
    "tick": (Ticking, "one replica is chosen for a tick of `every` and `cron`"),
    "enlist": (Enlisting, "`publish_in`: in a database transaction of yours"),
}

SHAPES = ("{}:///tidings.db", "{}://localhost", "{}://")  # a URL that names nothing in particular
LEAST = Capabilities(durable="none", ordering="none")


def capabilities(
    bus: Annotated[str | None, Parameter(name="URL", help="The bus; or give --url.")] = None,
    /,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show what a bus can do, as it says itself when it is open.

    native: the bus does it. emulated: Tidings does it with what the bus has. unavailable: asking for it is refused at
    start-up. Without any bus: what the installed transports say before they are open.
    """
    if bus is not None and url is not None:
        raise InvalidOption("URL and --url exclude each other", mend="drop one")
    source = Source(bus, "URL") if bus is not None else configured(url)
    if source is None:
        _all(json)
        return
    transport = asyncio.run(_ask(source))
    if json:
        show.document({"url": str(source), **_document(transport)})
        return
    show.note(f"{source}, by {type(transport).__name__.removesuffix('Transport')}")
    has = cells(transport)
    rows = [[name, has[name], text.replace("`", "")] for name, text in explained().items()]
    show.table(("capability", "here", "what it is"), rows)


def explained() -> dict[str, str]:
    """What each row of a table means, as Markdown."""
    return EXPLAINED | {name: text for name, (_, text) in PROTOCOLS.items()}


async def _ask(source: Source) -> Transport:
    """A transport that was open; its capabilities are final. A file that is not there is not created."""
    options = source.options()
    if file_of(options) is not None:
        async with opened(source) as app:
            return app.bus()
    transport = options.transport()
    await transport.open(lambda event: None)
    await transport.close()
    return transport


def _all(json: bool) -> None:
    """The table of every transport that is installed, as far as they know themselves unopened."""
    found, absent = _installed()
    silent = [name for name, transport in found.items() if _is_silent(transport.capabilities)]
    told = {name: transport for name, transport in found.items() if name not in silent}
    if json:
        show.document({name: _document(transport) for name, transport in told.items()})
    else:
        columns = [cells(transport) for transport in told.values()]
        rows = [[name, *(column[name] for column in columns)] for name in explained()]
        show.table(("capability", *told), rows)
    show.note("no bus is named, so none was opened: durability and sizes may differ, by the server's settings")
    if silent:
        show.note(f"{', '.join(silent)}: known only once open: tidings capabilities URL")
    for name, mend in absent.items():
        show.note(f"{name}: not installed: {mend}")


def _installed() -> tuple[dict[str, Transport], dict[str, str]]:
    """Transports by the name of their module, unopened; and how those could be had whose client is missing."""
    found, absent = dict[str, Transport](), dict[str, str]()
    for point in sorted(entry_points(group="tidings.transports"), key=lambda point: (len(point.name), point.name)):
        name = point.module.rpartition(".")[2]
        for shape in SHAPES if name not in found and name not in absent else ():
            try:
                found[name] = options_for(shape.format(point.name)).transport()
                break
            except MissingExtra as error:
                absent[name] = error.mend
                break
            except InvalidURL:
                continue
    return dict(sorted(found.items())), absent


def _is_silent(has: Capabilities) -> bool:
    """Whether a transport claims nothing yet."""
    return asdict(has) == asdict(LEAST) | {"durable": has.durable, "ordering": has.ordering}


def _document(transport: Transport) -> dict[str, Any]:
    return asdict(transport.capabilities) | {name: isinstance(transport, kind) for name, (kind, _) in PROTOCOLS.items()}


def cells(transport: Transport) -> dict[str, str]:
    """A transport's column of a table."""
    has = {name: _cell(name, transport.capabilities) for name in EXPLAINED}
    return has | {name: "yes" if isinstance(transport, kind) else "no" for name, (kind, _) in PROTOCOLS.items()}


def _cell(name: str, has: Capabilities) -> str:
    given: Any = getattr(has, name)
    if name == "delay" and given != "unavailable":
        longest = "any length" if has.delay_max is None else f"up to {_duration(has.delay_max)}"
        exact = f", to {_duration(has.delay_resolution)}" if has.delay_resolution else ""
        return f"{given} ({longest}{exact})"
    if name == "dedup":
        return "as long as it is retained" if given is None else _duration(given) if given else "no"
    if name == "max_payload":
        return size(given)
    return ("yes" if given else "no") if isinstance(given, bool) else str(given)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.6g} {unit}"
    return f"{seconds * 1e3:g} ms"
