"""``tidings find``."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption, Unsupported
from tidings.kernel.topics import DEAD, check_pattern
from tidings.kernel.transport import Stored

from . import show
from ._bus import Source, find_source, inspectable, opened
from ._filters import Headers, Key, Since, Where, anywhere, checked_limit, contains, filters
from ._options import Json, Url
from ._scan import Scan, Wanted, all_of

EVERYWHERE = (">", f"{DEAD}>")


def find(
    what: Annotated[str | None, Parameter(help="An id, a key, a header's value, or some text of the body.")] = None,
    /,
    *,
    id: Annotated[str | None, Parameter(help="Only the one with this id.")] = None,
    key: Key = None,
    header: Headers = [],  # noqa: B006
    text: Annotated[str | None, Parameter(help="Only those with this text in their body.")] = None,
    where: Where = [],  # noqa: B006
    since: Since = None,
    within: Annotated[
        str | None,
        Parameter(name="--in", help="Look only in topics of this pattern. Default: everywhere."),
    ] = None,
    limit: Annotated[int, Parameter(help="Show at most so many, the newest.")] = 100,
    url: Url = None,
    json: Json = False,
) -> None:
    """Find retained messages, dead letters too. Options exclude: found is what all of them say.

    It looks at everything that is retained, which may take a while. With --json: a list, under CloudEvents names.
    """
    patterns = EVERYWHERE if within is None else (check_pattern(within),)
    tests = filters(key, header, since, where)
    if id is not None:
        tests.append(lambda message: message.id == id)
    if text is not None:
        tests.append(contains(text))
    if what is not None:
        tests.append(anywhere(what))
    if not tests:
        mend = "a word, or --id, --key, --header, --text, --where, --since; `tidings peek` shows without a question"
        raise InvalidOption("find what?", mend=mend)
    scan, found = asyncio.run(_find(find_source(url), patterns, tests, checked_limit(limit)))
    if json:
        show.document([show.event(stored.message) for stored in found])
    else:
        for stored in found:
            show.message(stored.message)
    rest = f"; these are the newest {len(found):,}" if scan.found > len(found) else ""
    show.note(f"{scan}, found {scan.found:,}{rest}")


async def _find(
    source: Source, patterns: tuple[str, ...], tests: list[Wanted], limit: int
) -> tuple[Scan, list[Stored]]:
    async with opened(source) as app:
        scan = Scan(inspectable(app.bus()), *patterns)
        try:
            return scan, await scan.last(all_of(tests), limit)
        except Unsupported as error:
            error.mend = f"--in '{DEAD}>' looks in what it can show"
            raise
