"""Where a server listens: sockets, TLS, and who may be let in beyond this machine."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tidings.kernel.errors import InvalidOption, Unsupported

from .rights import Rights

if TYPE_CHECKING:
    from .settings import TLS, Settings

log = logging.getLogger("tidings")

BACKLOG = 2048


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of this name."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3


def refuse_open_doors(settings: Settings, anonymous: Rights | None) -> None:
    """Raises ``InvalidOption`` where anybody on a network could do everything, unless that was asked for."""
    beyond = [] if is_loopback(settings.host) else [settings.host or "every address"]
    hosts = [(address, address.rpartition(":")[0]) for address in settings.grpc if not address.startswith("unix:")]
    beyond += [address for address, host in hosts if not is_loopback(host)]
    if beyond and not settings.tls.cert and not settings.tls.proxy:
        log.warning("%s: without TLS, tokens and messages can be read on their way", ", ".join(beyond))
    if not beyond or anonymous is None or not (anonymous.admin or anonymous.member):
        return
    if settings.insecure:
        log.warning("%s: everybody who can reach it can do everything there", ", ".join(beyond))
        return
    mend = "`tidings token add NAME --publish … --subscribe …`, or --host 127.0.0.1; --insecure lets everybody in"
    where = f"{', '.join(beyond)} can be reached from other machines"
    raise InvalidOption("nobody has to say who it is, and everybody could do everything", why=where, mend=mend)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens for TCP. Raises ``InvalidOption``."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        # Connections inherit it. asyncio sets it by itself, but not where the protocol of the socket is not named, as
        # here: each answer would then wait 40 ms for the client's delayed acknowledgement of its head.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        mend = "take another --port; 0 is one that is free" if port else "take a --host of this machine"
        what = f"{host or 'every address'}:{port} cannot be listened on"
        raise InvalidOption(what, why=error.strerror or str(error), mend=mend) from None


def bound_unix(path: Path) -> socket.socket:
    """A Unix socket for this user and its group. Raises ``InvalidOption`` where a server listens already."""
    if not hasattr(socket, "AF_UNIX"):
        raise Unsupported("this system has no Unix sockets", mend="use --host and --port")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _refuse_living(path)
            path.unlink()  # of a server that was killed
        before = os.umask(0o117)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        mend = "take a path that is free, shorter than 100 characters, in a folder that may be written"
        raise InvalidOption(f"{path} cannot be listened on", why=error.strerror or str(error), mend=mend) from None
    except BaseException:
        listening.close()
        raise
    return listening


def _refuse_living(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        if trial.connect_ex(str(path)) == 0:
            raise InvalidOption(f"a server listens on {path} already", mend="stop it, or take another path")


def tls_context(tls: TLS) -> ssl.SSLContext | None:
    """TLS 1.2 or later; None where it is off. Raises ``InvalidOption``."""
    if not tls.cert:
        if tls.key or tls.clients or tls.required:
            raise InvalidOption("TLS has no certificate", mend='[tls] cert = "server.pem", key = "server.key"')
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(tls.cert, tls.key or None, password=_no_password)
        if tls.clients:
            context.load_verify_locations(tls.clients)
            context.verify_mode = ssl.CERT_REQUIRED if tls.required else ssl.CERT_OPTIONAL
        elif tls.required:
            raise InvalidOption("no authority for the certificates of clients", mend='[tls] clients = "ca.pem"')
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(filter(None, (tls.cert, tls.key, tls.clients)))
        mend = "PEM files that belong together, a key without a password"
        raise InvalidOption(f"TLS cannot be set up with {files}", why=str(error), mend=mend) from None
    return context


def _no_password() -> str:
    raise ValueError("the key needs a password")


def names_of(certificate: object) -> tuple[str, ...]:
    """The common name, DNS names and URIs of a verified certificate, as ``SSLSocket.getpeercert`` tells it."""
    if not isinstance(certificate, dict):
        return ()
    common = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    return tuple(dict.fromkeys([*common, *others]))
