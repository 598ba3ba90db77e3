"""The gRPC side of a gateway: ``tidings.v1`` (``transports/grpc/tidings_v1.proto``), health, and reflection."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from tidings.gateway.access import Access
from tidings.gateway.gateway import Gateway
from tidings.kernel.errors import BusUnavailable, InvalidOption, NotOpen
from tidings.transports.grpc.wire import BUS, MARGIN, TRANSPORT, pb

from .bus import BusService
from .calls import Calls
from .members import TransportService
from .standard import Standard

SOCKET = 0o600  # mode of a Unix socket's file
IDLE = 300.0  # seconds that a connection may be there for nothing
PINGS = 5.0  # seconds between a client's signs of life, at least
CALLS = 1000  # of one connection at once; more wait at the client

STOPS = NotOpen("the server stops", mend="come again")


class RPCServer:
    """A server that listens. ``address``: where, as a client's target."""

    def __init__(self, gateway: Gateway, access: Access) -> None:
        largest = max(gateway.limits.batch, gateway.bus.transport.capabilities.max_payload) + 16 * MARGIN
        self.calls, self.bus = Calls(gateway, access), BusService(gateway)
        self.transport = TransportService(gateway, largest)
        self.standard = Standard((BUS, TRANSPORT))
        calls = 2 * gateway.limits.connections  # half of them may be streams
        self.server = aio.server(options=options(gateway, largest), maximum_concurrent_rpcs=calls)
        self.server.add_generic_rpc_handlers((self._bus(), self._transport(), *self.standard.handlers(self.calls)))
        self.address = ""

    def _bus(self) -> grpc.GenericRpcHandler:
        calls, bus = self.calls, self.bus
        publish, subscribe, ask = pb.PublishRequest, pb.SubscribeRequest, pb.RequestRequest
        published, subscribed, replied = (
            {"response_serializer": kind.SerializeToString}
            for kind in (pb.PublishResponse, pb.SubscribeResponse, pb.RequestResponse)
        )
        one, stream, replies = (
            grpc.stream_unary_rpc_method_handler,  # a unary call on the wire; who calls is asked before it is read
            grpc.stream_stream_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
        )
        handlers: dict[str, Any] = {
            "Publish": one(calls.unary(bus.publish, publish), **published),
            "PublishStream": stream(calls.streaming(bus.publish_stream, publish), **published),
            "Subscribe": stream(calls.streaming(bus.subscribe, subscribe), **subscribed),
            "Request": one(calls.unary(bus.request, ask), **replied),
            "RequestStream": replies(calls.streaming(bus.request_stream, ask), **replied),
        }
        return grpc.method_handlers_generic_handler(BUS, handlers)

    def _transport(self) -> grpc.GenericRpcHandler:
        join = self.calls.streaming(self.transport.join, pb.Asks)  # which writes bytes
        return grpc.method_handlers_generic_handler(TRANSPORT, {"Join": grpc.stream_stream_rpc_method_handler(join)})

    async def start(self, address: str, credentials: grpc.ServerCredentials | None) -> None:
        self.address = bound(self.server, address, credentials)
        await self.server.start()
        await self.standard.start()

    async def stop(self, grace: float = 10.0) -> None:
        """End all streams, which tells their clients to come again; other calls have ``grace`` seconds to end."""
        self.transport.stopping.set()
        await self.standard.stop()
        self.calls.end(STOPS)
        await self.server.stop(grace)
        await self.transport.close()


async def serve_grpc(
    gateway: Gateway, access: Access, address: str, credentials: grpc.ServerCredentials | None = None
) -> RPCServer:
    """Serve an open gateway. ``address``: ``host:port`` (0: any that is free), or ``unix:/path``.

    A Unix socket is for its owner alone; grpcio does not tell who is at its other end, so its file's mode decides.
    Raises ``BusUnavailable`` when it cannot listen there, ``InvalidOption`` for what is no address.
    """
    server = RPCServer(gateway, access)
    await server.start(address, credentials)
    return server


def tls(certificate: str, key: str, clients: str = "") -> grpc.ServerCredentials:
    """TLS from PEM files. ``clients``: the authorities of the certificates that clients must show.

    grpcio does not look at a certificate that it does not require.

    Raises ``BusUnavailable`` when a file cannot be read.
    """
    try:
        chain, private = Path(certificate).read_bytes(), Path(key).read_bytes()
        trusted = Path(clients).read_bytes() if clients else None
    except OSError as error:
        what, mend = "TLS for gRPC cannot be set up", "PEM files that this process can read"
        raise BusUnavailable(what, why=str(error), mend=mend) from error
    return grpc.ssl_server_credentials([(private, chain)], trusted, trusted is not None)


def options(gateway: Gateway, largest: int) -> list[tuple[str, Any]]:
    """Of the server: what it takes, and how it finds clients that are gone without a word."""
    limits = gateway.limits
    return [
        ("grpc.so_reuseport", 0),  # a port that another has is refused
        ("grpc.max_concurrent_streams", CALLS),
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", int(limits.heartbeat * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.patience * 1000)),
        ("grpc.http2.ping_timeout_ms", int(limits.patience * 1000)),  # else a minute, whatever the other says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", int(IDLE * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(PINGS * 1000)),
    ]


def bound(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen there; where that is."""
    path = address.removeprefix("unix:")
    if path != address:
        path = path.removeprefix("//")
        vacant(Path(path))
        before = os.umask(0o777 & ~SOCKET)
        try:
            added(server, f"unix:{path}", credentials)
            os.chmod(path, SOCKET)
        finally:
            os.umask(before)
        return f"unix:{path}"
    host, colon, number = address.rpartition(":")
    if not colon or not number.isdigit() or int(number) > 65_535:
        raise InvalidOption(f"{address!r} is no address", mend="host:port, or unix:/path")
    return f"{host}:{added(server, address, credentials)}"


def added(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        mend = "another port, or stop what listens there"
        raise BusUnavailable(f"gRPC cannot listen at {address}", why=str(error), mend=mend) from error


def vacant(path: Path) -> None:
    """Raises ``BusUnavailable`` for a socket that somebody listens at, or what is none; a dead one is taken over."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise BusUnavailable(f"{path} is there, and is no socket", mend="another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise BusUnavailable(f"somebody listens at {path}", mend="another path, or stop what listens there")
