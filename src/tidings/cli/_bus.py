"""Which bus, and opening it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tidings import App
from tidings.asyncapi.project import project_file
from tidings.kernel.errors import BusUnavailable, InvalidOption, InvalidURL, Unsupported, nearest
from tidings.kernel.transport import Inspectable, Manageable, Options, Stored, Transport
from tidings.transports._url import shown
from tidings.urls import options_for

PAGE = 1_000


class Source(NamedTuple):
    """A bus, and who named it."""

    url: str | Options
    origin: str

    def options(self) -> Options:
        """Its transport's options; raises ``InvalidURL``, saying who named it."""
        if not isinstance(self.url, str):
            return self.url
        try:
            return options_for(self.url)
        except InvalidURL as error:
            error.why = f"{error.why}; it is from {self.origin}" if error.why else f"it is from {self.origin}"
            raise

    def __str__(self) -> str:
        """The bus as it is shown: files absolute, passwords and tokens hidden."""
        file = file_of(self.options())
        if file is not None:
            return f"sqlite:///{file}"
        return shown(self.url) if isinstance(self.url, str) else type(self.url).__name__


def file_of(options: Options) -> Path | None:
    """The file of a bus that is one."""
    from tidings.transports.sqlite import SQLite

    return options.file() if isinstance(options, SQLite) else None


def is_memory(options: Options) -> bool:
    """Whether only the process that opens the bus can reach it; told without the import, which takes longer."""
    return type(options).__module__ == "tidings.transports.memory"


def configured(given: str | None) -> Source | None:
    """The bus that ``--url``, TIDINGS_URL or the nearest pyproject.toml names, in this order."""
    if given == "":
        raise InvalidOption("--url is empty", mend="--url sqlite:///shop.db, or leave it out")
    if given is not None:
        return Source(given, "--url")
    if url := os.environ.get("TIDINGS_URL"):
        return Source(url, "TIDINGS_URL")
    project = project_file(Path.cwd())
    return _project_url(project) if project else None


def find_source(given: str | None) -> Source:
    """``configured``; raises ``InvalidOption`` when nothing names a bus."""
    found = configured(given)
    if found is None:
        raise InvalidOption(
            "which bus?",
            why="there is no --url, no TIDINGS_URL, and no [tool.tidings] url in the nearest pyproject.toml",
            mend="--url sqlite:///shop.db, or export TIDINGS_URL=sqlite:////absolute/path/shop.db",
        )
    return found


def _project_url(project: Path) -> Source | None:
    """Its ``[tool.tidings] url``; a relative file is relative to the project, not to where one happens to stand."""
    try:
        settings: Any = tomllib.loads(project.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        mend = "mend it, or give --url or TIDINGS_URL"
        raise InvalidOption(f"{project} cannot be read", why=str(error), mend=mend) from None
    ours = settings
    for name in ("tool", "tidings"):
        ours = ours.get(name, {})
        if not isinstance(ours, dict):
            raise InvalidOption(f"{name} of {project} is no table", mend='[tool.tidings], and below it url = "…"')
    url = ours.get("url")
    if url is None:
        return None
    if not isinstance(url, str):
        raise InvalidOption(f"[tool.tidings] url of {project} is no text", mend='url = "sqlite:///shop.db"')
    path = url.removeprefix("sqlite:///")
    if path != url and path and not path.startswith(("/", "~", "%2F", "?")):
        url = f"sqlite:///{project.parent}/{path}"
    return Source(url, f"[tool.tidings] url of {project}")


@asynccontextmanager
async def opened(source: Source, *, create: bool = False) -> AsyncIterator[App]:
    """An app that is connected to the bus and has no handlers. A file is created only with ``create``."""
    options = source.options()
    _refuse_what_nobody_shares(source, options)
    if not create:
        _refuse_missing(options)
    app = App("tidings-cli", options)
    app.use(options)
    async with app.connect():
        yield app


def reachable(app: App, url: str | None) -> None:
    """Let an app have the buses that it would run on; raises ``BusUnavailable``, ``Unsupported`` for one not there."""
    source = configured(url)
    named = {"": source.url} if source is not None else {}
    named |= {name: os.environ[f"TIDINGS_URL_{name.upper()}"] for name in app.urls if _named_outside(name)}
    for name, outside in named.items():
        app.use(outside, name)
    sources = [Source(given, f"the code of {app.name!r}") for given in app.urls.values()]
    every = [(each, each.options()) for each in sources]
    if all(is_memory(options) for _, options in every):
        _refuse_what_nobody_shares(*every[0])
    for _, options in every:
        _refuse_missing(options)


def _named_outside(bus: str) -> bool:
    return bool(bus and os.environ.get(f"TIDINGS_URL_{bus.upper()}"))


def _refuse_what_nobody_shares(source: Source, options: Options) -> None:
    if is_memory(options):
        raise Unsupported(
            f"{source.url if isinstance(source.url, str) else 'memory://'} cannot be reached from another process",
            why="a memory bus lives and dies with the process that opened it",
            mend="use sqlite:///file.db, in the app too",
        )


def _refuse_missing(options: Options) -> None:
    file = file_of(options)
    if file is None:
        return
    try:
        if file.exists():
            return
    except PermissionError as error:
        mend = f"give this user the right to enter {file.parent}"
        raise BusUnavailable(f"{file} cannot be looked at", why=str(error), mend=mend) from error
    known = sorted(path.name for path in file.parent.glob("*.db")) if file.parent.is_dir() else []
    if not file.parent.is_dir():
        why = f"there is no folder {file.parent}"
    else:
        why = f"in {file.parent} there is {', '.join(known[:5])}" if known else f"no *.db is in {file.parent}"
    raise BusUnavailable(
        f"there is no bus file {file}",
        why=why,
        mend=nearest(file.name, known) or "`tidings run` and `tidings publish` create it",
    )


def inspectable(bus: Transport) -> Inspectable:
    if not isinstance(bus, Inspectable):
        raise _unsupported(bus, "cannot be looked into")
    return bus


def manageable(bus: Transport) -> Manageable:
    if not isinstance(bus, Manageable):
        raise _unsupported(bus, "does not let its groups be mended")
    return bus


def _unsupported(bus: Transport, what: str) -> Unsupported:
    kind = type(bus).__name__.removesuffix("Transport")
    return Unsupported(
        f"{kind} {what}", mend="use the broker's own tools; docs/transports.md shows what each bus can do"
    )


async def retained(bus: Inspectable, pattern: str, after: int = 0) -> AsyncIterator[Stored]:
    """All that is retained beyond a position, oldest first, a page at a time."""
    while True:
        page = await bus.peek(pattern, after, PAGE)
        for stored in page:
            yield stored
        if len(page) < PAGE:
            return
        after = page[-1].position
