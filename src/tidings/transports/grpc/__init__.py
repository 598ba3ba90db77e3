"""``grpc://host[:port]``, ``grpc+tls://``, ``grpc+unix:///path``: the bus that a ``tidings serve`` opens.

Theory of operation. One bidirectional stream (``Transport.Join`` of ``tidings_v1.proto``) is a member of the served
bus: what an app asks of its transport goes up in it, and each ask has its answer. What waits to be sent goes in one
frame, so many callers at once cost little more than one. The server opens the bus once for each member and passes
everything on: leases, fences, counts, order, atomicity, positions and capabilities are those of the bus behind.

Messages are pulled: ``receive(limit)`` asks for so many, and nothing is kept here. A lost stream ends the sessions of
all that is in hand, which comes back to its group as that of a process that died; meanwhile we connect again, for ever,
and subscribe as before. A publish whose answer was lost is *unknown*. A lease that passes ends the session here, too, a
little earlier than there.

grpcio runs one event loop a process well, and does not survive ``fork()``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc as grpc  # whoever lacks it is told so here, before anything is opened
from google import protobuf as protobuf
from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.errors import BusUnavailable, Duration, InvalidURL
from tidings.transports._tls import paired, unsecured
from tidings.transports._url import fill, hidden, locate, shown

if TYPE_CHECKING:
    from .transport import GRPCTransport

PORT = 50051


class GRPC(Struct, frozen=True, kw_only=True):
    """Options of ``grpc://``, ``grpc+tls://`` and ``grpc+unix://``; ``docs/transports/grpc.md`` describes each."""

    host: str = "localhost"
    port: int = PORT
    path: str = ""  # of a Unix socket
    tls: bool = False
    token: str = ""
    publish_wait: Duration = "30s"
    ca: str = ""  # files
    certificate: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return hidden(replace(self, token="***") if self.token else self)

    @classmethod
    def from_url(cls, url: str) -> GRPC:
        """``grpc://host[:port][?option=value]``, ``grpc+unix:///path[?…]``; raises ``InvalidURL``."""
        at = locate(url, PORT)
        scheme, _, kind = at.scheme.partition("+")
        if at.user or at.password:
            raise InvalidURL(f"{scheme}:// has no user and no password", mend="?token= says who you are")
        if kind == "unix":
            if at.hosts or not at.path:
                raise InvalidURL(f"{shown(url)!r} names no socket", mend="grpc+unix:///run/tidings.sock")
            return fill(cls, url, at.query, path=f"/{at.path}", host="", port=0, tls=False)
        if at.path:
            raise InvalidURL(f"{shown(url)!r} has a path", mend="a socket is grpc+unix:///path")
        if len(at.hosts) > 1:
            raise InvalidURL(f"{shown(url)!r} has several hosts", mend="one name may have several addresses")
        host, port = at.hosts[0] if at.hosts else ("localhost", PORT)
        return fill(cls, url, at.query, host=host, port=port, tls=kind == "tls", path="")

    def transport(self) -> GRPCTransport:
        from .transport import GRPCTransport

        return GRPCTransport(self)

    @property
    def target(self) -> str:
        """Where it is, as gRPC names it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS. Raises ``BusUnavailable`` when a file cannot be read, ``InvalidOption`` for one without a use."""
        if not self.tls:
            unsecured("grpc+tls://", ca=self.ca, certificate=self.certificate, key=self.key)
            return None
        paired(("certificate", self.certificate), ("key", self.key))
        try:
            ca, certificate, key = (Path(f).read_bytes() if f else None for f in (self.ca, self.certificate, self.key))
        except OSError as error:
            what = f"TLS for {self.target} cannot be set up"
            raise BusUnavailable(what, why=str(error), mend="PEM files that this process can read") from error
        return grpc.ssl_channel_credentials(ca, key, certificate)
