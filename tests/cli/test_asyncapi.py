"""``tidings asyncapi``: valid by AsyncAPI's own schema, and true of the app."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import jsonschema
import pytest
from msgspec import Meta, Struct
from pydantic import BaseModel, ConfigDict, Field

from tidings.asyncapi.schemas import example_of, schemas_of
from tidings.kernel.codec import decoder
from tidings.kernel.message import JSON

from .conftest import Shell

OFFICIAL = json.loads(gzip.decompress((Path(__file__).parent / "data/asyncapi-3.1.0.json.gz").read_bytes()))

DESK = '''
from __future__ import annotations
from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple
from msgspec import Struct
from pydantic import BaseModel, Field
from tidings import App, Depends, Message, Service, Topic
import far

class Made(Struct, tag=True):
    id: str

class Gone(Struct, tag=True):
    id: str
    why: str | None = None

class Place(NamedTuple):
    x: float
    y: float

class Item(BaseModel):
    sku: str = Field(min_length=3)
    parts: list[Item] = []

app = App("desk", "kafka://ada:secret@one:9092,two:9092?partitions=2", files="sqlite:///files.db")
changes = Topic("items.{item}.changed", Made | Gone)
places = Topic("places", Place)
items = Topic("items", list[Item], bus="files")
audit = Topic("items.{item}.changed.audit", bytes)
spare = Topic("items.item.changed", str)
price = Service("price", Item, float)

def draft(x: float) -> Message[Place]:
    return places(Place(x, x))

def gate() -> Topic[bytes]:
    return audit

@app.on(changes, group="changes")
async def change(event: Made | Gone, item: str) -> Message[Place] | None:
    """Note a change.

    Every one of them.
    """
    return draft(1.0) if event.items else far.send()

@app.on(items, live=True)
async def watch(many: list[Item], to: Annotated[Any, Depends(gate)]) -> None:
    await app.request(price, many[0])

@app.on("items.>")
async def everything(message: Message[Any]) -> None: ...

@app.answer(price)
async def quote(item: Item) -> AsyncIterator[float]:
    yield 1.0

@app.answer("count")
async def count(word: str) -> int: ...

@app.every("10s")
async def poll() -> Message[Any]:
    return changes.bind(item="a")(Made("a"))
'''

FAR = """
from tidings import Message, Topic
distant = Topic("distant", int)
def send() -> Message[int]:
    return distant(1)
"""


@pytest.fixture
def desk(nowhere: Shell) -> dict[str, Any]:
    nowhere.write("desk.py", DESK)
    nowhere.write("far.py", FAR)
    nowhere.write("pyproject.toml", '[project]\nname = "desk"\nversion = "2.3"\n')
    done = nowhere("asyncapi", "desk:app")
    assert "secret" not in done.out
    assert done.out.startswith('{\n  "asyncapi": "3.1.0",\n')
    assert nowhere("asyncapi", "desk:app", "--json").json == done.json
    found: dict[str, Any] = done.json
    return found


def faults(document: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(OFFICIAL).iter_errors(document)]


def test_is_valid(desk: dict[str, Any]) -> None:
    assert faults(desk) == []
    assert dangling(desk) == []


@pytest.mark.parametrize("app", ["shop", "tidings.demo.app"])
def test_other_apps_are_valid(shell: Shell, app: str) -> None:
    document = shell("asyncapi", app).json
    assert faults(document) == []
    assert dangling(document) == []


def test_the_official_schema_would_tell(desk: dict[str, Any]) -> None:
    for path, value in [
        (("operations", "changes", "action"), "recieve"),
        (("channels", "places", "adress"), "x"),
        (("components", "schemas", "Made", "type"), "objekt"),
        (("info",), {}),
    ]:
        wrong = deepcopy(desk)
        place = wrong
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        assert faults(wrong), path


def dangling(document: dict[str, Any]) -> list[str]:
    """References that lead nowhere."""
    found, nodes = [], [document]
    while nodes:
        node: Any = nodes.pop()
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        if isinstance(node, dict) and isinstance(ref := node.get("$ref"), str):
            place: Any = document
            for name in ref.removeprefix("#/").split("/"):
                place = place.get(name) if isinstance(place, dict) else None
            found += [] if place is not None else [ref]
    return found


def test_servers(desk: dict[str, Any]) -> None:
    assert desk["info"] == {"title": "desk", "version": "2.3"}
    assert desk["servers"] == {
        "default": {"host": "one:9092", "protocol": "kafka"},
        "default-2": {"host": "two:9092", "protocol": "kafka"},
        "files": {"host": "localhost", "protocol": "sqlite", "pathname": "files.db"},
    }
    on = {name: [ref["$ref"][10:] for ref in channel["servers"]] for name, channel in desk["channels"].items()}
    assert on["files.items"] == ["files"]
    assert on["places"] == ["default", "default-2"]


def test_channels(desk: dict[str, Any]) -> None:
    addresses = {name: channel["address"] for name, channel in desk["channels"].items()}
    assert addresses == {
        "items.item.changed": "items.{item}.changed",
        "items.item.changed_2": "items.item.changed",
        "items.item.changed.audit": "items.{item}.changed.audit",
        "items.rest": "items.{rest}",
        "files.items": "items",
        "places": "places",
        "_request.price": "_request.price",
        "_reply.price": None,
        "_request.count": "_request.count",
        "_reply.count": None,
        "distant": "distant",
    }
    assert list(desk["channels"]["items.item.changed"]["parameters"]) == ["item"]
    assert list(desk["channels"]["items.item.changed"]["messages"]) == ["Made_or_Gone"]


def test_operations(desk: dict[str, Any]) -> None:
    operations = desk["operations"]
    actions = {name: operation["action"] for name, operation in operations.items()}
    assert {name for name, action in actions.items() if action == "receive"} == {
        *("changes", "desk.watch", "desk.everything", "price", "count")
    }
    assert {name: operations[name]["x-tidings-senders"] for name, action in actions.items() if action == "send"} == {
        "send.places": ["changes"],
        "send.distant": ["changes"],
        "send.items.item.changed.audit": ["desk.watch"],
        "ask._request.price": ["desk.watch"],
        "send.items.item.changed": ["desk.poll"],
    }
    change = operations["changes"]
    assert (change["title"], change["summary"], change["description"]) == (
        *("change", "Note a change.", "Every one of them."),
    )
    assert change["x-tidings-group"] == "changes"
    assert "x-tidings-group" not in operations["desk.watch"]
    assert operations["price"]["reply"]["messages"] == [{"$ref": "#/channels/_reply.price/messages/float"}]
    assert operations["price"]["x-tidings-stream"] is True
    assert operations["count"]["reply"]["messages"] == [{"$ref": "#/channels/_reply.count/messages/int"}]


def test_messages(desk: dict[str, Any]) -> None:
    messages, schemas = desk["components"]["messages"], desk["components"]["schemas"]
    assert messages["bytes"] == {
        "name": "bytes",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }
    assert messages["str"]["contentType"] == "text/plain"
    assert messages["list_Item"]["payload"] == {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}
    assert schemas["Item"]["properties"]["sku"]["minLength"] == 3
    assert schemas["Place"]["items"] == [{"type": "number"}, {"type": "number"}]


def test_another_bus(nowhere: Shell) -> None:
    nowhere.write("desk.py", DESK)
    nowhere.write("far.py", FAR)
    document = nowhere("asyncapi", "desk", "--url", "nats+tls://user:secret@host:4222").json
    assert document["servers"]["default"] == {"host": "host:4222", "protocol": "nats"}
    assert faults(document) == []


MORE = """
import pathlib
from tidings import App, Topic
from tidings.transports.{module} import {kind}

app = App("desk", {options})
paths = Topic("paths", pathlib.Path)
clear = Topic("b", list[int] | set[int])
class Topics:
    kept = Topic("items.{{x}}.kept", int)

@app.on("items.{{y}}.kept", group="send.b")
async def keep(n: int, y: str) -> None:
    print(clear)

@app.on("items.>", live=True)
async def look(n: int) -> None:
    print(Topics.kept, paths)

names = dict(app=app)
exec("@app.on('made')\\nasync def made(n: int): ...", names)
"""


@pytest.fixture
def more(nowhere: Shell) -> dict[str, Any]:
    nowhere.write("desk.py", MORE.format(module="sqlite", kind="SQLite", options='SQLite(path="desk.db")'))
    nowhere.write("pyproject.toml", 'project = "desk"\n')
    found: dict[str, Any] = nowhere("asyncapi", "desk").json
    assert faults(found) == []
    assert dangling(found) == []
    return found


def test_types_without_a_schema_have_a_title(more: dict[str, Any]) -> None:
    assert more["components"]["messages"]["Path"]["payload"] == {"title": "Path"}
    assert more["components"]["messages"]["list_int_or_set_int"]["payload"]["title"]
    assert more["info"]["version"] == "0.0.0"


def test_operations_of_one_name(more: dict[str, Any]) -> None:
    actions = {name: operation["action"] for name, operation in more["operations"].items()}
    assert actions == {
        "send.b": "receive",
        "desk.look": "receive",
        "desk.made": "receive",
        "send.b_2": "send",
        "send.items.y.kept": "send",
        "send.paths": "send",
    }


def test_captures_of_another_name_are_one_channel(more: dict[str, Any]) -> None:
    assert [name for name in more["channels"] if name.endswith("kept")] == ["items.y.kept"]


def test_the_version_is_that_of_the_project_that_has_the_app(nowhere: Shell) -> None:
    nowhere.write("one/desk.py", DESK)
    nowhere.write("one/far.py", FAR)
    nowhere.write("one/pyproject.toml", '[project]\nversion = "1.1"\n')
    nowhere.write("two/pyproject.toml", '[project]\nversion = "2.2"\n')
    document = nowhere("asyncapi", "../one/desk.py", folder=nowhere.folder / "two").json
    assert document["info"]["version"] == "1.1"


@pytest.mark.parametrize(
    ("module", "options", "server"),
    [
        ("sqlite", 'SQLite(path="/tmp/a b.db")', ("localhost", "sqlite", "/tmp/a%20b.db")),
        ("redis", 'Redis(server="rediss://ada:secret@one:6380/3")', ("one:6380", "rediss", "/3")),
        ("postgres", 'Postgres(dsn="postgresql://ada:secret@one/desk")', ("one", "postgresql", "/desk")),
        ("postgres", 'Postgres(dsn="host=one password=secret dbname=desk")', ("one:5432", "postgresql", "/desk")),
        ("rabbitmq", 'RabbitMQ(hosts=(("::1", 5672),), vhost="a", password="secret")', ("[::1]:5672", "amqp", "/a")),
        ("nats", 'NATS(servers=(("one", 4222),), user="secret")', ("one:4222", "nats", None)),
        ("kafka", 'Kafka(hosts=(("one", 9092),), tls=True)', ("one:9092", "kafka-secure", None)),
    ],
)
def test_servers_of_options(nowhere: Shell, module: str, options: str, server: tuple[str, str, str | None]) -> None:
    nowhere.write("desk.py", MORE.format(module=module, kind=options.partition("(")[0], options=options))
    done = nowhere("asyncapi", "desk")
    assert "secret" not in done.out
    found = done.json["servers"]["default"]
    assert (found["host"], found["protocol"], found.get("pathname")) == server


def test_no_part_of_a_password_is_written(shell: Shell) -> None:
    urls = ["kafka://ada:s3cr/3t@127.0.0.1:1", "amqp://ada:s3#cr3t@127.0.0.1", "nats://ada:s3cr/3t@h", "bad://x"]
    results = shell.all([["asyncapi", "shop", "--url", url] for url in urls])
    wrong = [result for result in results if result[:2] != (2, "") or "s3" in result[2]]
    assert wrong == []
    assert all("it is from --url" in result[2] for result in results)


def test_no_such_app(nowhere: Shell) -> None:
    nowhere.write("desk.py", "x = 1")
    assert "did you mean 'desk'?" in nowhere("asyncapi", "dsk", code=2).err
    assert json.loads(nowhere("asyncapi", "desk", "--json", code=2).err)["error"]["code"] == "TDG-E012"


# -- schemas, and the examples that ``tidings dev`` prints


class Colour(Enum):
    RED = "red"


class Row(TypedDict):
    n: int


class Pair(NamedTuple):
    a: int
    b: str = ""


class Point(Struct, array_like=True):
    x: float
    y: float


class Tree(Struct):
    name: str
    children: list[Tree] = []


class Left(Struct, tag=True):
    at: datetime


class Right(Struct, tag=True):
    discriminator: int  # a property that is called as what is left out


@dataclass
class Part:
    colour: Colour
    cost: Decimal
    at: tuple[int, str]
    few: Annotated[int, Meta(ge=3, le=5)]
    code: Annotated[str, Meta(min_length=12)]
    kind: Literal["a", "b"]
    day: date
    span: timedelta
    id: UUID
    blob: bytes
    more: dict[str, int]
    maybe: int | None


class Model(BaseModel):
    sku: str = Field(min_length=3)
    n: int = Field(gt=7)
    sub: list[Model] = []


class Holder(Struct):
    model: Model | None
    models: dict[str, Model]


TYPES = [
    *(int, float, bool, str, Any, datetime, dict[str, int], list[Row], Row, Pair, Point, Tree, Left | Right),
    *(Part, Model, Model | None, list[Model], None, Annotated[int, Meta(multiple_of=7)], set[Colour], tuple[int, ...]),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_an_example_is_what_the_schema_and_the_type_take(kind: Any) -> None:
    (schema,), parts = schemas_of([kind])
    document = {"components": {"schemas": parts}, **schema}
    jsonschema.Draft7Validator.check_schema(document)
    body = example_of(kind)
    assert body is not None
    if kind is str:
        return  # text/plain, not JSON
    assert list(jsonschema.Draft7Validator(document).iter_errors(json.loads(body))) == []
    decoder(kind)(body.encode(), JSON)


def test_no_example_of_what_cannot_be_guessed() -> None:
    assert example_of(Annotated[str, Meta(pattern="^[0-9]{4}-x$")]) is None
    assert example_of(bytes) is None


class Opaque: ...


class Holding(BaseModel, arbitrary_types_allowed=True):
    opaque: Opaque


class Calling(Struct):
    call: Callable[[], int]


def _fail(schema: dict[str, Any]) -> None:
    raise LookupError


class Failing(BaseModel):
    model_config = ConfigDict(json_schema_extra=_fail)
    n: int


@pytest.mark.parametrize("kind", [Opaque, Holding, Calling, Failing, list[Failing], list[int] | set[int]])
def test_a_type_without_a_schema_does_not_end_the_others(kind: Any) -> None:
    schemas, parts = schemas_of([kind, Tree])
    assert schemas[1] == {"$ref": "#/components/schemas/Tree"}
    assert "Tree" in parts
    example_of(kind)  # raises nothing


def test_models_of_one_name() -> None:
    class Point(BaseModel):
        lat: float

    schemas, parts = schemas_of([Point, globals()["Point"]])
    assert len(parts) == 2
    assert schemas[0] != schemas[1]
    assert {schema["$ref"].rpartition("/")[2] for schema in schemas} == set(parts)
