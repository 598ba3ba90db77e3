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
        self.clients: tuple[Client, ...] = ()
        self._tokens, self._certificates = dict[str, Principal](), dict[str, Principal]()
        self._anonymous: Principal | None = None
        self.admit(clients, anonymous)

    def admit(self, clients: Sequence[Client], anonymous: Rights | None) -> None:
        """From now on these may come, and nobody else.

        Streams of others end, of those whose rights are changed, and those that came by a token or certificate which
        is good no longer: a principal is the same object for as long as its credential, name and rights are the same.
        """
        self.clients = tuple(clients)
        tokens, certificates = self._tokens, self._certificates
        self._tokens = {c.token: _kept(tokens.get(c.token), c.name, c.rights) for c in clients if c.token}
        self._certificates = {
            c.certificate: _kept(certificates.get(c.certificate), c.name, c.rights) for c in clients if c.certificate
        }
        self._anonymous = _kept(self._anonymous, "anyone", anonymous) if anonymous is not None else None
        known = {id(who) for who in (*self._tokens.values(), *self._certificates.values(), self._anonymous)}
        for end, who in tuple(self.watched.items()):
            if id(who) not in known:
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


def _kept(before: Principal | None, name: str, rights: Rights) -> Principal:
    """The principal of a credential: the object that it was, unless something is new."""
    now = Principal(name, rights)
    return before if before is not None and before == now else now
