"""Who is who: clients by bearer token or certificate. Of a token only its hash is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence

from msgspec import Struct

from .refusals import Unauthenticated
from .rights import EVERYTHING, Principal, Rights

PREFIX = "tdg_"  # so that scanners for leaked secrets find them
HASHED = re.compile("sha256:[0-9a-f]{64}")


class Client(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client that is known: by the hash of its token, by a name in its certificate, or by either."""

    name: str
    token: str = ""  # "sha256:<hex>"
    certificate: str = ""  # common name, or a DNS or URI name, of a certificate that TLS has verified
    rights: Rights = Rights()

    def __post_init__(self) -> None:
        if self.token and not HASHED.fullmatch(self.token):
            raise ValueError("a token is kept as its hash, sha256:<64 hex digits>; `tidings token add` makes one")


def new_token() -> str:
    """A token of 256 random bits: a hash of it needs no salt."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """What is kept of a token."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


class Access:
    """Those who may come. ``anonymous``: the rights of who does not say who it is; None: it is turned away."""

    def __init__(self, clients: Sequence[Client] = (), anonymous: Rights | None = EVERYTHING) -> None:
        self.watched: dict[Callable[[], None], Principal] = {}  # what ends each open stream, and whose it is
        self.admit(clients, anonymous)

    def admit(self, clients: Sequence[Client], anonymous: Rights | None) -> None:
        """From now on these may come, and nobody else. Streams of others end, and of those whose rights are changed."""
        self._tokens = {c.token: Principal(c.name, c.rights) for c in clients if c.token}
        self._certificates = {c.certificate: Principal(c.name, c.rights) for c in clients if c.certificate}
        self._anonymous = Principal("anyone", anonymous) if anonymous is not None else None
        known = {*self._tokens.values(), *self._certificates.values(), self._anonymous}
        for end, who in tuple(self.watched.items()):
            if who not in known:
                end()

    @property
    def anonymous(self) -> bool:
        """Whether anybody may come."""
        return self._anonymous is not None

    def principal(self, token: str | None, certificates: Sequence[str] = ()) -> Principal:
        """Who brings this token, or a certificate with these names. Raises ``Unauthenticated``.

        Looked up by hash: how long that takes says nothing about the token. A wrong one is refused, anonymous or not.
        """
        if token is not None:
            if known := self._tokens.get(hashed(token)):
                return known
            raise Unauthenticated("this token is not known")
        for name in certificates:
            if known := self._certificates.get(name):
                return known
        if self._anonymous is None:
            raise Unauthenticated("nobody comes here without saying who it is")
        return self._anonymous
