"""What ``tidings serve`` is told: one typed configuration, of flags, the environment, and one TOML file, in this order.

A name means the same everywhere: ``--port``, ``TIDINGS_SERVE_PORT``, ``port = …``; ``TIDINGS_SERVE_LIMITS_RATE`` is
``rate`` in ``[limits]``. Relative paths of the file are relative to it. What is not known is refused, with the nearest.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, inspect

from tidings.kernel.errors import InvalidOption, NotFound, UsageError, nearest

from .access import Client
from .engine.configuration import Options
from .limits import Limits
from .receiving import WebhookIn
from .rights import Rights
from .sending import WebhookOut

PREFIX, FILE, TOKENS = "TIDINGS_SERVE_", "tidings.toml", "tidings-tokens.json"
SECURED = ("cert", "key", "clients")
PATHS = (("tokens",), ("socket",), ("nats", "data"), *((table, name) for table in ("tls", "nats") for name in SECURED))
REFUSED = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
SECRET = ("secrets", "password", "headers", "url")
HIDDEN, REFERENCE = "(hidden)", re.compile("(env|file):")  # where a secret is, is none


class TLS(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files in PEM. ``clients``: of the authorities whose certificates clients may show; ``required``: and must.

    ``proxy``: there is none here, but a proxy through which all others come has it.
    """

    cert: str = ""
    key: str = ""
    clients: str = ""
    required: bool = False
    proxy: bool = False


class Webhooks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[webhooks.in]]`` and ``[[webhooks.out]]``."""

    incoming: tuple[WebhookIn, ...] = msgspec.field(default=(), name="in")
    outgoing: tuple[WebhookOut, ...] = msgspec.field(default=(), name="out")


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that ``tidings serve`` can be told. ``""`` is none."""

    url: str = ""  # of the bus
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080  # 0: one that is free
    socket: str = ""  # a Unix socket, beside host and port
    grpc: tuple[str, ...] = ()  # host:port, or unix:path
    engine: Literal["", "nats"] = ""
    tokens: str = TOKENS  # clients that `tidings token` wrote
    insecure: bool = False  # beyond this machine without TLS, or open to everybody
    access_log: bool = False
    grace: Annotated[float, Meta(ge=0)] = 10.0  # seconds that open streams and requests have at the end
    origins: tuple[str, ...] = ()  # of other sites whose pages may come, as browsers name them: https://example.org
    tls: TLS = TLS()
    limits: Limits = Limits()
    clients: tuple[Client, ...] = ()
    anonymous: Rights | None = None  # of who does not say who it is
    webhooks: Webhooks = Webhooks()
    nats: Options = Options()  # the engine


def load(file: Path | None, flags: Mapping[str, Any], variables: Mapping[str, str]) -> Settings:
    """The configuration. ``file``: default ``tidings.toml``, where it is; ``flags``: those that were given.

    Raises ``NotFound`` for a file that is not there; ``InvalidOption``, which names what is wrong and where it stands.
    """
    found = file or (Path(FILE) if Path(FILE).is_file() else None)
    told = _of_file(found) if found else {}
    merged = _merged(_merged(told, _of_variables(variables)), flags)
    return _converted(merged, str(found) if found else "flags and environment")


def _of_file(file: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", mend="leave out --config, or write one", where=str(file)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidOption(f"{file} cannot be read", why=str(error), mend="mend it", where=str(file)) from None
    _converted(told, str(file))
    folder = file.resolve().parent
    told.setdefault("tokens", TOKENS)
    for *tables, name in PATHS:
        table: Any = told
        for each in tables:
            table = table.get(each, {})
        if table.get(name):
            table[name] = str(folder / Path(table[name]).expanduser())
    path = told.get("url", "").removeprefix("sqlite:///")
    if path and path != told["url"] and not path.startswith(("/", "~", "%2F", "?")):
        told["url"] = f"sqlite:///{folder}/{path}"
    return told


def _of_variables(variables: Mapping[str, str]) -> dict[str, Any]:
    """What ``TIDINGS_SERVE_…`` say. A list is separated by commas."""
    known = {"_".join(path).upper(): (path, kind) for path, kind in _leaves(inspect.type_info(Settings))}
    told: dict[str, Any] = {}
    for name, text in variables.items():
        if not name.startswith(PREFIX):
            continue
        if name.removeprefix(PREFIX) not in known:
            close = nearest(name, [PREFIX + each for each in known])
            raise InvalidOption(f"nothing is called {name}", mend=close or "unset it", where="the environment")
        path, kind = known[name.removeprefix(PREFIX)]
        value: Any = [each.strip() for each in text.split(",") if each.strip()] if _listed(kind) else text
        if not _listed(kind) and not isinstance(kind, inspect.StrType | inspect.LiteralType):
            value = _scalar(name, text)
        told = _merged(told, _nested(path, value))
        _converted(_nested(path, value), name)
    return told


def _scalar(name: str, text: str) -> Any:
    try:
        return json.loads(text.lower())
    except ValueError:
        raise InvalidOption(f"{name} cannot be {text!r}", mend="a number, true or false", where=name) from None


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def _leaves(info: inspect.Type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], inspect.Type]]:
    """Every value that one variable can tell; not what comes in numbers, as clients do."""
    if not isinstance(info, inspect.StructType):
        if not isinstance(info, inspect.UnionType) and not (_listed(info) and _struct(info)):
            yield path, info
        return
    for field in info.fields:
        yield from _leaves(field.type, (*path, field.encode_name))


def _listed(info: inspect.Type) -> bool:
    return isinstance(info, inspect.VarTupleType | inspect.ListType)


def _struct(info: inspect.Type | None) -> inspect.StructType | None:
    """The table that a value is, or that its items are, or that it may be."""
    if isinstance(info, inspect.VarTupleType | inspect.ListType):
        return _struct(info.item_type)
    if isinstance(info, inspect.DictType):
        return _struct(info.value_type)
    if isinstance(info, inspect.UnionType):
        return next(filter(None, map(_struct, info.types)), None)
    return info if isinstance(info, inspect.StructType) else None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(told.get(name), Mapping)
        told[name] = _merged(told[name], value) if both else value
    return told


def _converted(told: Mapping[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(told, Settings)
    except msgspec.ValidationError as error:
        found = REFUSED.fullmatch(str(error))
        what, path = (found[1], found[2] or "") if found else (str(error), "")
        table = ".".join(part for part in path.split(".") if part)
        unknown = re.search(r"unknown field `(.*)`", what)
        if unknown:
            known = _fields(path)
            what, mend = f"nothing is called {unknown[1]!r}", nearest(unknown[1], known) or f"known: {', '.join(known)}"
        else:
            what, mend = what[:1].lower() + what[1:], "`tidings serve --print-config` shows how all of it is written"
        raise InvalidOption(f"{what}{f' in {table}' if table else ''}", mend=mend, where=where) from None
    except UsageError as error:  # a pattern that is none
        error.where = where
        raise


def _fields(path: str) -> list[str]:
    """The names that a table has: ``limits``, ``clients[0].rights``."""
    table: inspect.Type | None = inspect.type_info(Settings)
    for name in re.findall(r"[a-z_]+", re.sub(r"\[\.*\d*\]", "", path)):
        fields = {field.encode_name: field.type for field in found.fields} if (found := _struct(table)) else {}
        table = fields.get(name)
    return [field.encode_name for field in found.fields] if (found := _struct(table)) else []


def without_secrets(settings: Settings, bus: str) -> dict[str, Any]:
    """All of it as ``--print-config`` shows it. ``bus``: its URL, without a password."""
    told: dict[str, Any] = _hidden(msgspec.to_builtins(settings))
    return told | {"url": bus}


def _hidden(value: Any, name: str = "") -> Any:
    """Without what may be secret: the URL of a webhook is, too."""
    if isinstance(value, Mapping):
        told = {key: each for key, each in value.items() if each is not None}
        return {key: _hidden(each, name if name in SECRET else key) for key, each in told.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each, name) for each in value]
    return HIDDEN if name in SECRET and value and not REFERENCE.match(str(value)) else value


def printed(told: Mapping[str, Any]) -> str:
    """It as TOML."""
    return "\n".join(_lines(told, ()))


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lists = {name: value for name, value in table.items() if _is_tables(value)}
    for name, value in table.items():
        if name not in tables and name not in lists:
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    for name, value in tables.items():
        yield f"\n[{'.'.join((*path, name))}]"
        yield from _lines(value, (*path, name))
    for name, values in lists.items():
        for value in values:
            yield f"\n[[{'.'.join((*path, name))}]]"
            yield from _lines(value, (*path, name))


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
