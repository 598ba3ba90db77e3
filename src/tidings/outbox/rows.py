"""What a row is, and where its table: names, SQL text, messages to rows and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Struct, structs

from tidings.kernel.errors import InvalidOption, InvalidURL, nearest
from tidings.kernel.message import Message

COLUMNS = ("id", "topic", "key", "body", "attributes")
MOST = 8 * 2**20  # bytes of bodies that a relay takes at once, beyond the first

_NAME = re.compile(r"([a-z_][a-z0-9_]{0,30}\.)?[a-z_][a-z0-9_]{0,30}")
_KINDS = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql"}
_ATTRIBUTES = (*Message.__struct_fields__[4:16], "bus")  # what is sealed, beyond the columns
_USUAL = dict(zip(Message.__struct_fields__[1:], Message.__struct_defaults__, strict=True))


class Place(Struct, frozen=True):
    """A database of the user's: its kind, and the driver that may be used on it."""

    kind: Literal["sqlite", "postgresql"]
    driver: str  # of SQLite: sqlite3 or apsw; never both, for two builds of SQLite on one file undo each other's locks
    dsn: str  # a path, or a URL
    shown: str  # without its password


def place_of(url: str) -> Place:
    """Where a URL of the user's leads; SQLAlchemy's names of drivers will do. Raises ``InvalidURL``."""
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else (repr(url), "", "")
    name, _, driver = scheme.partition("+")
    if not separator or name not in _KINDS:
        mend = nearest(name, _KINDS) or "sqlite:///app.db, or postgresql://user@host/database"
        raise InvalidURL(f"an outbox cannot be in {scheme}", why="it is in SQLite or PostgreSQL", mend=mend)
    if _KINDS[name] == "postgresql":
        return Place(
            "postgresql", "", f"postgresql://{rest}", f"postgresql://{rest.rpartition('@')[2].partition('?')[0]}"
        )
    path = unquote(rest.partition("?")[0])
    if not path.startswith("/") or path[1:] in ("", ":memory:"):
        why = "a relay cannot see a database in memory" if ":memory:" in path else "it names no file"
        raise InvalidURL(
            f"an outbox cannot be in {url!r}", why=why, mend="sqlite:///app.db, or sqlite:////var/lib/app.db"
        )
    file = str(Path(path[1:]).expanduser().absolute())
    return Place("sqlite", "apsw" if driver == "apsw" else "sqlite3", file, file)


class Table(Struct, frozen=True):
    """A table's name, and the SQL with it. Raises ``InvalidOption`` for what is no name."""

    name: str
    place: Place

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            mend = "up to 31 of a-z, 0-9 and _, not beginning with a digit; a schema before it is another such name"
            raise InvalidOption(f"a table cannot be called {self.name!r}", mend=mend)

    @property
    def quoted(self) -> str:
        return ".".join(f'"{part}"' for part in self.name.split("."))

    def insert(self, marks: Sequence[str]) -> str:
        """SQL that adds a row; ``marks`` are the driver's signs of the five parameters."""
        return f"INSERT INTO {self.quoted} ({', '.join(COLUMNS)}) VALUES ({', '.join(marks)})"

    def ddl(self) -> str:
        """SQL that makes it."""
        text = files(__package__).joinpath(f"{self.place.kind}.sql").read_text()
        own = re.sub(r'"$', '_commit"', self.quoted)
        return text.replace("{table}", self.quoted).replace("{function}", own).replace("{name}", self.name)


def row_of(sealed: Message[Any]) -> tuple[str, str, str | None, bytes, str]:
    """A sealed message as the values of ``COLUMNS``; ``attributes``: JSON of what is not usual."""
    said = {name: value for name in _ATTRIBUTES if (value := getattr(sealed, name)) != _USUAL[name]}
    return sealed.id, sealed.topic, sealed.key, sealed.body, msgspec.json.encode(said).decode()


class Taken(Struct, frozen=True):
    """A row in a relay's hands. ``message``: sealed; None where the row is none, and ``why`` not."""

    position: int
    message: Message[Any] | None
    why: str = ""


def taken(position: int, id: str, topic: str, key: str | None, body: bytes, attributes: str) -> Taken:
    """A row as it was read, whoever wrote it."""
    try:
        said = msgspec.json.decode(attributes, type=dict[str, Any])
        message = msgspec.convert({**said, "topic": topic, "id": id, "key": key, "body": b""}, Message[Any])
    except msgspec.MsgspecError as error:
        return Taken(position, None, f"the row is no message: {error}")
    return Taken(position, structs.replace(message, body=bytes(body)))
