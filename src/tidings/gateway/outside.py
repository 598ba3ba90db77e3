"""HTTP to where others say: connections that are kept, and none to what only this machine or its network can reach.

Who may name a URL could otherwise let this process ask what it cannot ask itself (server-side request forgery): the
cloud's metadata, a database. So a name is resolved here, every address of it is judged, and the connection is made to
an address that was judged: a name that resolves to something else a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import httpcore

KEEP = 60.0  # seconds that an idle connection is kept
CONNECT = 0.25  # of the time for a request: for each address, as one may be out of reach and another not
ANSWER = 64 * 1024  # bytes of an answer that are read, so that its connection can be kept
UNICAST, NAT64 = IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96")  # RFC 4291, section 2.4; RFC 6052


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the Internet at large; of one that leads to an IPv4 address, whether that does.

    Raises ``ValueError`` for what is no address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip in NAT64:
        ip = IPv4Address(int(ip) & 0xFFFFFFFF)
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast
    return ip in UNICAST and ip.is_global and (ip.sixtofour is None or is_public(str(ip.sixtofour)))


class Judged(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only. Raises ``httpcore.ConnectError`` for a name that has any other."""

    def __init__(self) -> None:
        self.backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await _addresses(host, port):
            try:
                return await self.backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"{host} is not known: {error.strerror}") from None
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if not all(map(is_public, addresses)):
        raise httpcore.ConnectError(f"{host} is an address of a private network, which is not allowed")
    return addresses


def pool(most: int, *, private: bool) -> httpcore.AsyncConnectionPool:
    """Up to ``most`` connections. ``private``: to any address. No proxy, no redirects, no cookies; TLS is verified."""
    backend: Any = None if private else Judged()
    context = ssl.create_default_context()
    return httpcore.AsyncConnectionPool(context, max_connections=most, keepalive_expiry=KEEP, network_backend=backend)


async def post(
    pool: httpcore.AsyncConnectionPool, url: str, headers: Mapping[str, str], body: bytes, timeout: float
) -> tuple[int, str]:
    """The answer's status and its ``Retry-After``. Raises ``TimeoutError``, and what httpcore raises."""
    sent = [("host", urlsplit(url).netloc), *headers.items()]
    limits = {"timeout": {"connect": timeout * CONNECT}}
    try:
        async with (
            asyncio.timeout(timeout),
            pool.stream("POST", url, headers=sent, content=body, extensions=limits) as answer,
        ):
            size = 0
            async for chunk in answer.aiter_stream():
                size += len(chunk)
                if size > ANSWER:
                    break
    except httpcore.TimeoutException:
        raise TimeoutError from None
    after = next((value for name, value in answer.headers if name.lower() == b"retry-after"), b"")
    return answer.status, after.decode("latin-1")
