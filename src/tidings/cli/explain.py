"""``tidings explain``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from . import show
from ._options import Json
from ._pages import Page, page_of, pages


def explain(
    error: Annotated[str | None, Parameter(name="ERROR", help="TDG-E012, E012, 12 or NotFound. Default: all.")] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """Explain an error: what it means, what causes it, and how to mend it. Without one: list them."""
    if error is not None:
        page = page_of(error)
        if json:
            show.document({**_told(page), "text": page.text})
        else:
            _print(page)
    elif json:
        show.document([_told(page) for page in pages().values()])
    else:
        rows = [[page.kind.code, page.kind.__name__, page.meaning] for page in pages().values()]
        show.table(("code", "error", "meaning"), rows)


def _told(page: Page) -> dict[str, Any]:
    return {"code": page.kind.code, "error": page.kind.__name__, "meaning": page.meaning, "fault": page.fault}


def _print(page: Page) -> None:
    if not show.terminal(sys.stdout):
        show.say(page.markdown.rstrip())
        return
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    show.say(f"{show.styled(page.kind.code, show.RED)} {show.styled(page.kind.__name__, show.BOLD)}")
    show.say(show.styled(f"{page.meaning} Whose fault: {page.fault}.", show.DIM))
    console = Console(highlight=False, theme=Theme({"markdown.code": "cyan"}))
    console.print()
    console.print(Markdown(page.text, code_theme="ansi_dark"), width=min(console.width, 100))
