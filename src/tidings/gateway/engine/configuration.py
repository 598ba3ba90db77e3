"""What the engine is told, and the NATS server's configuration that follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from msgspec import Meta, Struct

from tidings.gateway.listening import is_loopback
from tidings.gateway.secret import secret
from tidings.kernel.errors import InvalidOption
from tidings.kernel.message import seconds
from tidings.kernel.topics import check_pattern

from .devices import ANONYMOUS, Device, Topics

HOST = "127.0.0.1"
STREAM = "$MQTT_msgs"  # the server's own for MQTT: what it has acknowledged lies there, in the order in which it came
KEY = "app.nk"
MQTT_ONLY, APPS_ONLY, NOBODY = ["MQTT", "MQTT_WS"], ["STANDARD"], ["LEAFNODE"]

Devices = tuple[Device, ...] | None  # None: nobody is known, and anybody may come
Port = Annotated[int, Meta(ge=1, le=65535)]


class Cluster(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several servers that are one: ``listen`` and ``routes`` are ``host:port``, the same ``name`` on each."""

    listen: str
    routes: tuple[str, ...]
    name: str = "tidings"
    user: str = "route"
    password: str = ""  # that the servers show each other; env:NAME or file:/path where it is

    def __post_init__(self) -> None:
        if any("@" in route for route in self.routes):
            mend = 'routes = ["host:port"], user = "…", password = "env:NAME"'
            raise InvalidOption("a route of the cluster has a user or a password in it", mend=mend)

    def __repr__(self) -> str:
        return f"Cluster({self.listen!r}, {self.routes!r}, {self.name!r})"


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of ``--engine nats``. ``""`` is none; durations are ``"10s"``, sizes bytes."""

    data: str = "tidings-data"  # the folder of all that it keeps
    name: str = "tidings"  # the server's: in a cluster each has its own
    host: str = HOST  # where devices come in
    mqtt: Port = 1883
    websocket: Annotated[int, Meta(ge=0, le=65535)] = 0  # of MQTT over WebSocket, at the path /mqtt; 0: none
    port: Port = 4222  # where apps come in, on this machine only
    sync: str = "10s"  # how often to disk; "always": before it is acknowledged
    retain: str = "7d"
    max_size: int = -1
    replicas: int = 1  # 3 in a cluster
    commands: tuple[str, ...] = ("commands.>",)  # what waits for devices that are away
    cert: str = ""  # PEM files of TLS
    key: str = ""
    clients: str = ""  # of the authority of the certificates that all devices show, instead of passwords
    insecure: bool = False  # beyond this machine without TLS, and without devices that are known
    devices: tuple[Device, ...] = ()  # beside those that `tidings device add` wrote
    anonymous: Topics = Topics(
        publish=("sensors.>", "devices.>"), subscribe=("sensors.>", "devices.>", "commands.>")
    )  # while no device is known
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        if self.sync != "always":
            seconds(self.sync, "sync")
        seconds(self.retain, "retain")
        for pattern in self.commands:
            check_pattern(pattern)
        if bool(self.cert) != bool(self.key):
            raise InvalidOption("TLS needs a certificate and its key", mend='cert = "server.pem", key = "server.key"')

    @property
    def folder(self) -> Path:
        return Path(self.data).expanduser().resolve()

    def url(self) -> str:
        """Of the bus: for apps on this machine that may read its folder. There is no secret in it."""
        told = {"stream": STREAM, "nkey": str(self.folder / KEY), "devices": ",".join(self.commands)}
        told |= {"sync": "always" if self.sync == "always" else "interval", "retain": str(self.retain)}
        told |= {"max_size": str(self.max_size), "replicas": str(self.replicas)}
        return f"nats://{HOST}:{self.port}?{urlencode(told, safe='/>*,')}"


def check_doors(options: Options, devices: Devices) -> None:
    """Raises ``InvalidOption`` for what would be open to a network, or for devices that could not log in."""
    if options.clients and not options.cert:
        raise InvalidOption("certificates of devices need TLS", mend='cert = "server.pem", key = "server.key"')
    for device in devices or ():
        if bool(device.certificate) != bool(options.clients):
            mend = 'clients = "ca.pem" and a certificate for every device, or a password for every device'
            raise InvalidOption(f"{device.name!r} could not log in", why="it is certificates, or passwords", mend=mend)
    if is_loopback(options.host) or options.insecure:
        return
    where = f"{options.host or 'every address'} can be reached from other machines"
    if devices is None:
        mend = "`tidings device add NAME --publish … --subscribe …`, or host = 127.0.0.1; insecure lets everybody in"
        raise InvalidOption("no device has to say who it is", why=where, mend=mend)
    if not options.cert:
        mend = "cert and key name PEM files; or host = 127.0.0.1; insecure does without"
        raise InvalidOption("passwords of devices could be read on their way", why=where, mend=mend)


def configured(options: Options, devices: Devices, public: str) -> str:
    """The server's configuration, as JSON, which it reads too. ``public``: the key of our apps.

    Devices can change while the server runs; all else cannot.
    """
    jetstream = {"store_dir": str(options.folder), "sync_interval": options.sync}
    told: dict[str, Any] = {"server_name": options.name, "listen": f"{HOST}:{options.port}", "jetstream": jetstream}
    told["logtime"] = False
    told["authorization"] = {
        "users": [
            {"nkey": public, "allowed_connection_types": APPS_ONLY},
            *_users(options, devices or ()),
            _anybody(options, devices is None),
        ]
    }
    door = {"no_auth_user": ANONYMOUS} | _tls(options)
    told["mqtt"] = {"host": options.host, "port": options.mqtt, **door}
    if options.websocket:
        no_tls = {} if options.cert else {"no_tls": True}
        told["websocket"] = {"host": options.host, "port": options.websocket, **door, **no_tls}
    if options.cluster:
        told["cluster"] = _cluster(options.cluster)
    return json.dumps(told, indent=2)


def _users(options: Options, devices: Sequence[Device]) -> list[dict[str, Any]]:
    names = [device.name for device in devices]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidOption(f"there are two devices {min(twice)!r}", mend="rename one, or `tidings device rm` it")
    users = [
        {"user": device.certificate or device.name, "password": device.password, "permissions": device.permissions()}
        for device in devices
    ]
    return [user | {"allowed_connection_types": MQTT_ONLY} for user in users]


def _anybody(options: Options, may_come: bool) -> dict[str, Any]:
    """Who gives no name: the server has to know this user from its start, so it may be one that cannot come."""
    told = {"user": ANONYMOUS, "password": "", "permissions": options.anonymous.permissions()}
    return told | {"allowed_connection_types": MQTT_ONLY if may_come else NOBODY}


def _tls(options: Options) -> dict[str, Any]:
    if not options.cert:
        return {}
    shown = {"ca_file": options.clients, "verify_and_map": True} if options.clients else {}
    return {"tls": {"cert_file": options.cert, "key_file": options.key, **shown}}


def _cluster(cluster: Cluster) -> dict[str, Any]:
    password = secret(cluster.password, "the cluster")
    login = f"{cluster.user}:{quote(password, safe='')}@" if password else ""
    told: dict[str, Any] = {"name": cluster.name, "listen": cluster.listen}
    told["routes"] = [f"nats://{login}{route}" for route in cluster.routes]
    if password:
        told["authorization"] = {"user": cluster.user, "password": password}
    return told


def first_tokens(options: Options, devices: Devices) -> set[str]:
    """Of the topics that devices may publish: the bus takes them before a device can."""
    rights: Sequence[Topics] = [options.anonymous] if devices is None else devices
    return {pattern.partition(".")[0] for topics in rights for pattern in topics.publish}
