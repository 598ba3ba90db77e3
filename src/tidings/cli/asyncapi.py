"""``tidings asyncapi``: an app's channels, operations and messages as an AsyncAPI 3.1 document."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import msgspec
from cyclopts import Parameter

from tidings.asyncapi.document import document
from tidings.kernel.errors import MissingExtra
from tidings.kernel.transport import Options
from tidings.transports._url import locate

from . import show
from ._bus import Source
from ._options import Json, Target
from ._target import find_app

PROTOCOLS = {
    "kafka+ssl": "kafka-secure",
    "eventhubs": "kafka-secure",
    "nats+tls": "nats",
    "postgres": "postgresql",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+cluster": "redis",
    "redis+sentinel": "redis",
}
SCHEMES = {  # of options: (kind, whether with TLS)
    ("kafka", True): "kafka+ssl",
    ("nats", True): "nats+tls",
    ("rabbitmq", False): "amqp",
    ("rabbitmq", True): "amqps",
}


def asyncapi(
    target: Target,
    /,
    *,
    url: Annotated[
        str | None, Parameter(name="--url", help="The server of its default bus. Default: the one its code names.")
    ] = None,
    json: Json = False,
) -> None:
    """Describe an app as an AsyncAPI 3.1 document, in JSON: what it receives, sends, answers and asks.

    Nothing is opened. Passwords are left out. A handler is said to send to its to=, and to every topic that its code
    names.
    """
    app = find_app(target)
    buses = {name: Source(given, target) for name, given in app.urls.items()}
    if url is not None:
        buses[""] = Source(url, "--url")
    found = document(app, {name: servers_of(source) for name, source in buses.items()})
    show.document(found) if json else show.say(msgspec.json.format(msgspec.json.encode(found)).decode())


def servers_of(source: Source) -> list[dict[str, str]]:
    """A server for each host of a bus, without who may use it. Raises ``InvalidURL``."""
    if isinstance(source.url, str):
        with suppress(MissingExtra):
            source.options()
    url = _url_of(source.url)
    parts = urlsplit(url)
    hosts, path = parts.netloc.rpartition("@")[2] or "localhost", parts.path if parts.path.strip("/") else ""
    if parts.scheme in ("sqlite", "memory"):
        path = parts.path[1:]  # a relative file stays one
    else:
        locate(url, 1)  # refuses a password that ends too early, and would be taken for a host
    protocol = PROTOCOLS.get(parts.scheme, parts.scheme)
    return [{"host": host, "protocol": protocol, **({"pathname": path} if path else {})} for host in hosts.split(",")]


def _url_of(given: str | Options) -> str:
    """Where a bus is."""
    if isinstance(given, str):
        return given
    options: Any = given
    kind = type(given).__name__.lower()
    if kind == "sqlite":
        return f"sqlite:///{quote(options.path)}"
    if kind == "redis":
        return str(options.server)
    if kind == "postgres":
        words = {name: value.strip("'") for name, value in re.findall(r"(\w+)\s*=\s*('[^']*'|\S+)", options.dsn)}
        host = f"{words.get('host', 'localhost')}:{words.get('port', 5432)}"
        return options.dsn if "://" in options.dsn else f"postgresql://{host}/{words.get('dbname', '')}"
    hosts = getattr(given, "hosts", None) or getattr(given, "servers", None) or ()
    places = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    vhost = quote(getattr(given, "vhost", "/").removeprefix("/"), safe="")
    return f"{SCHEMES.get((kind, bool(getattr(given, 'tls', False))), kind)}://{places}/{vhost}"
