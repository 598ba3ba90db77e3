"""``tidings topology``: what calls what in an app, as Mermaid, a picture, a tree or JSON; and what lacks an end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tidings import App
from tidings import topology as drawing
from tidings.kernel.errors import InvalidOption
from tidings.topology import Node, Orphans, Topology

from . import show
from ._bus import reachable
from ._options import DryRun, Json, Target, flag
from ._target import find_app

Url = Annotated[str | None, Parameter(name="--url", help="The bus to look at. Default: TIDINGS_URL, then the app's.")]


def topology(
    target: Target,
    /,
    *,
    svg: Annotated[str | None, Parameter(help="Draw it into this file.")] = None,
    text: Annotated[bool, flag("A tree instead.")] = False,
    orphans: Annotated[bool, flag("List what is published and nobody listens to, and the reverse.")] = False,
    observed: Annotated[
        bool, flag("Look at the bus too: retained messages, who published them, other groups.")
    ] = False,
    url: Url = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Show how an app hangs together, as a Mermaid flowchart: topics, services, schedules, handlers, dead letters.

    Nothing is opened without --observed. A handler is shown to send to its to=, and to every topic that its code names;
    patterns say what they are.
    """
    forms = [name for name, given in (("--svg", svg is not None), ("--text", text), ("--orphans", orphans)) if given]
    if len(forms) > 1:
        raise InvalidOption(f"{forms[0]} and {forms[1]} exclude each other", mend="give one of them")
    app = find_app(target)
    graph = asyncio.run(_observed(app, url)) if observed or url is not None else drawing.topology(app)
    if svg is not None:
        _write(Path(svg), drawing.svg(graph), dry_run, json)
    elif orphans:
        _list(drawing.orphans(graph), json)
    elif json:
        show.document({"app": graph.app, "nodes": list(graph.nodes.values()), "edges": graph.edges})
    else:
        show.say((drawing.tree(graph) if text else drawing.mermaid(graph)).rstrip("\n"))


async def _observed(app: App, url: str | None) -> Topology:
    """What the app's buses show; none is created."""
    reachable(app, url)
    async with app.connect():
        return await drawing.observe(app)


def _list(found: Orphans, json: bool) -> None:
    if json:
        show.document(found)
        return
    rows = [*_rows(found.unheard, "nobody listens"), *_rows(found.unsent, "nobody publishes")]
    rows += _rows(found.unused, "nobody uses it")
    if rows:
        show.table(("channel", "what", "bus"), rows)
    else:
        show.say("no orphans: each channel has both ends")


def _rows(nodes: Sequence[Node], what: str) -> Iterator[Sequence[str]]:
    service = {"nobody listens": "nobody answers", "nobody publishes": "nobody asks"}
    for node in nodes:
        yield node.name, service[what] if node.kind == "service" else what, node.bus


def _write(file: Path, picture: str, dry_run: bool, json: bool) -> None:
    try:
        if file.exists() and not file.read_bytes().startswith(b"<svg"):
            why, mend = "it exists, and is no picture of ours", "give another file, or remove it"
            raise InvalidOption(f"--svg cannot be {str(file)!r}", why=why, mend=mend)
        if not dry_run:
            file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"--svg cannot be {str(file)!r}", why=str(error), mend="a file in a folder") from None
    if json:
        show.document({"file": str(file), "bytes": len(picture.encode()), "dry_run": dry_run})
    else:
        show.say(f"{'would write' if dry_run else 'wrote'} {file}")
