"""``nats://host[:port]``: NATS with JetStream (server 2.12 or newer).

Theory of operation. One stream holds a bus: topics are its subjects, and a group is a durable pull consumer on its
pattern and another on its private address, so that what goes back to it waits behind no backlog (``frames.py`` says how
names and patterns map). What is published goes out in windows, each message under a ``Nats-Msg-Id``, and is accepted
when the server has answered for each; what had no answer when a connection was lost goes out again under the same id.

A delivery is ours for a lease. The server gives a message to somebody else after ``ack_wait``, which is a quarter
longer, and takes an acknowledgement from anybody; so the fence is ours: a lease counts from before the message can have
left the server, and what is settled after its end is refused here. What goes back (a retry, a release, what is in hand
at the end) is a copy to the private address, published by the server's own schedule when it is to wait, and then the
original is acknowledged: never a negative acknowledgement, which would come back looking like a dead holder's. What the
server delivers twice is therefore a suspect; a mark is a message of its own, looked up when its suspect comes back.

Requests and replies travel on core NATS. A lost connection loses no lease: pulls are issued again, acknowledgements
repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nats as nats  # whoever lacks it is told so here, before anything is opened
from msgspec import Struct

from tidings.kernel.errors import BusUnavailable, Duration, InvalidOption, InvalidURL
from tidings.kernel.topics import TOKEN, check_pattern
from tidings.transports._tls import secured, unsecured
from tidings.transports._url import SEED, fill, hidden, locate, shown

if TYPE_CHECKING:
    from .transport import NATSTransport

CONNECT = 5  # seconds for one server, TLS included
MENDS = {  # what to do when no server would have us, by the words of its reason
    "(?i)authorization": "check user and password, token, credentials= or nkey=",
    "CERTIFICATE_VERIFY": "ca= names the PEM file of who signed its certificate",
    "TLS|SSL|reset|pipe": "nats+tls:// is for a server with TLS, certificate= and key= for one that wants to see them",
    "seed": "nkey= and credentials= name files that have the seed of a user",
}


class NATS(Struct, frozen=True, kw_only=True):
    """Options of ``nats://`` and ``nats+tls://``; ``docs/transports/nats.md`` describes each."""

    servers: tuple[tuple[str, int], ...] = (("localhost", 4222),)
    user: str = ""  # alone: a token
    password: str = ""
    tls: bool = False
    namespace: str = ""
    stream: str = ""
    lease: Duration = "30s"
    publish_wait: Duration = "30s"
    retain: Duration = "7d"
    max_size: int = -1  # bytes of the stream; beyond it the oldest go
    dedup: Duration = "2m"
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    sync: Literal["interval", "always"] = "interval"  # what the server is configured to: it does not tell
    provision: bool = True
    domain: str = ""
    devices: str = ""  # what MQTT devices subscribe to: patterns, separated by commas
    credentials: str = ""  # files
    nkey: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""

    __repr__ = hidden

    @classmethod
    def from_url(cls, url: str) -> NATS:
        """``nats://[user:password@]host[:port][,host...][?option=value]``; raises ``InvalidURL``."""
        at = locate(url, 4222)
        if at.path:
            raise InvalidURL(f"{shown(url)!r} has a path", mend="?namespace= keeps buses apart")
        given = {"servers": at.hosts or (("localhost", 4222),), "user": at.user, "password": at.password}
        options = fill(cls, url, at.query, **given, tls=at.scheme == "nats+tls")
        if options.namespace and not TOKEN.fullmatch(options.namespace):
            raise InvalidURL(f"namespace cannot be {options.namespace!r}", mend="letters, digits, '_' and '-'")
        if options.devices and options.namespace:
            raise InvalidURL("devices= is for a bus without namespace=", why="MQTT topics have no place for one")
        for pattern in options.listening:
            check_pattern(pattern)
        return options

    @property
    def listening(self) -> tuple[str, ...]:
        """The patterns of ``devices``."""
        return tuple(filter(None, self.devices.split(",")))

    def transport(self) -> NATSTransport:
        from .transport import NATSTransport

        return NATSTransport(self)

    def connecting(self) -> dict[str, Any]:
        """What the client is told.

        Raises ``BusUnavailable`` when a file is not there, or is not what it should be; ``InvalidOption`` when it would
        not be used, or is none.
        """
        scheme = "tls" if self.tls or self.ca or self.certificate else "nats"
        hosts = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.servers]
        told: dict[str, Any] = {"servers": hosts, "connect_timeout": CONNECT}
        if self.user and self.password:
            told |= {"user": self.user, "password": self.password}
        elif self.user:
            told["token"] = self.user
        if self.credentials:
            told["user_credentials"] = holding(self.credentials, "BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")
        if self.nkey:
            told["nkeys_seed"] = holding(self.nkey, "SU")
        if scheme == "tls":
            told["tls"] = secured("NATS", ("ca", self.ca), ("certificate", self.certificate), ("key", self.key))
        else:
            unsecured("nats+tls://", key=self.key)
        return told


def holding(file: str, *marks: str) -> str:
    """A file's name, when all those marks are in it: the client looks for them for ever.

    Raises ``BusUnavailable``, and ``InvalidOption`` for what the file should hold, which is not shown.
    """
    if SEED.search(file):
        mend = "write it to a file that only you can read, and name that"
        raise InvalidOption("nkey= and credentials= name files, and this is the seed itself", mend=mend)
    try:
        text = Path(file).read_text()
        missing = [mark for mark in marks if mark not in text]
        why = f"it has no {missing[0]!r}" if missing else ""
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        mend = "credentials= names a .creds file, nkey= one with the seed of a user"
        raise BusUnavailable(f"{file!r} cannot be used to log in to NATS", why=why, mend=mend)
    return file
