"""Bodies that travel wrapped: encrypted, signed, compressed, or as a foreign system wants it (EIP: Envelope Wrapper).

    vault = encrypted({"2026-11": key, "2026-10": old_key}, topics="payments.>")
    instrument(app, vault)

From then on what is published to, or returned for, those topics leaves wrapped, handlers see what was in it, and what
comes from there unwrapped goes to the dead letters, so nobody gets anything past the wrapper. The header ``envelope``
says what a body is in, the outermost last: ``zlib,aes-gcm/2026-11``. Several wrappers nest; the first is the outermost.
"""

from __future__ import annotations

import hmac
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from tidings.kernel.errors import InvalidOption, MissingExtra, Undecodable
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import REQUEST, check_pattern, matches, refuse_reserved, token, untoken

from ._rewriting import Rewriting, headed

T = TypeVar("T")

HEADER = "envelope"

Wrap = Callable[[bytes, bytes], tuple[bytes, str]]
"""From a body and what it is bound to, to the wrapped body and a note that ``Unwrap`` needs: the key's id."""
Unwrap = Callable[[bytes, bytes, str], bytes]
"""From a wrapped body, what it is bound to and the note, to the body; any exception refuses it."""


class EnvelopeWrapper(Rewriting):
    """An explicit pair of functions, and the topics whose bodies travel in this envelope.

    ``name``: what the header calls it, a token. ``topics``: a topic or pattern. ``required``: what comes from there
    without this envelope is refused; False while publishers are brought over. As a middleware it unwraps what its
    handler gets and wraps what it returns; ``instrument`` adds what the app publishes. Requests and replies travel
    as they are, and so does what a handler returns to *another* bus of its app: ``return await vault.wrap(draft)``.
    Raises ``InvalidOption``, ``InvalidName``.
    """

    def __init__(self, name: str, wrap: Wrap, unwrap: Unwrap, *, topics: str, required: bool = True) -> None:
        if not isinstance(name, str) or not name or token(name) != name:
            raise InvalidOption(f"an envelope cannot be called {name!r}", mend="letters, digits, '-' and '_'")
        self.name, self._wrap, self._unwrap, self.required = name, wrap, unwrap, required
        self.pattern = refuse_reserved(check_pattern(topics))

    async def wrap(self, draft: Message[T]) -> Message[T]:
        """A draft as it shall travel; unchanged if its topic is none of ours, or it is wrapped already.

        For what ``instrument`` does not reach: what a handler returns to another bus of its app, and apps that are not
        instrumented. It gets an id, unless it has one: in a handler give it one that is the same when it runs again.
        Raises ``PayloadRefused``, and what the pair raises.
        """
        return await self.rewritten(draft)

    async def outgoing(self, message: Message[Any]) -> Message[Any]:
        if not matches(self.pattern, message.topic) or self._opened(message) is not None:
            return message
        if not message.id:
            message = replace(message, id=new_id())
        body, note = self._wrap(message.body, bound(message))
        layer = f"{self.name}/{token(note)}" if note else self.name
        return headed(replace(message, body=body), HEADER, ",".join([*_layers(message), layer]))

    async def incoming(self, message: Message[Any]) -> Message[Any]:
        if not matches(self.pattern, message.topic) or (message.address or "").startswith(REQUEST):
            return message
        layers = _layers(message)
        if not any(layer.partition("/")[0] == self.name for layer in layers) and not self.required:
            return message
        try:
            body = self._open(message)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            mend = (
                "let its publisher wrap it, with what is known here; required=False while publishers are brought over"
            )
            raise Undecodable(
                f"the body is in no {self.name} envelope that can be opened", why=why, mend=mend
            ) from error
        return headed(replace(message, body=body), HEADER, ",".join(layers[:-1]) or None)

    def _open(self, message: Message[Any]) -> bytes:
        name, _, note = (_layers(message) or [""])[-1].partition("/")
        if name != self.name:
            raise ValueError(f"it is in {name!r}" if name else "it is in none")
        return self._unwrap(message.body, bound(message), untoken(note))

    def _opened(self, message: Message[Any]) -> bytes | None:
        """What is in it if it was wrapped already: whatever its headers say, nothing leaves in the open."""
        try:
            return self._open(message)
        except Exception:
            return None


def bound(message: Message[Any]) -> bytes:
    """What a body cannot be moved away from: its topic, id and content type."""
    return "\0".join((message.topic, message.id, message.content_type)).encode()


def _layers(message: Message[Any]) -> list[str]:
    said = message.header(HEADER)
    return said.split(",") if said else []


def encrypted(keys: Mapping[str, bytes], *, topics: str, required: bool = True) -> EnvelopeWrapper:
    """Encrypted and authenticated by AES-GCM, so that nobody can read a body, change it, or move it to another message.

    ``keys``: 16, 24 or 32 random bytes by id. The first encrypts; all decrypt. To rotate, give the new key to whoever
    consumes, last in the mapping, then put it first everywhere, and drop the old one when nothing of it is left. Take
    a new key after 2**32 messages. Headers and keys of messages are not encrypted, nor what an error's text quotes.

    Raises ``InvalidOption``, and ``MissingExtra`` without ``tidings[crypto]``.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        mend = "pip install 'tidings[crypto]'"
        raise MissingExtra("encrypting needs cryptography", why=str(error), mend=mend) from None
    _check(keys, lambda key: len(key) in (16, 24, 32), "AESGCM.generate_key(256), 32 random bytes")
    ciphers = {id: AESGCM(key) for id, key in keys.items()}
    first = next(iter(ciphers))

    def wrap(body: bytes, bound: bytes) -> tuple[bytes, str]:
        nonce = os.urandom(12)
        return nonce + ciphers[first].encrypt(nonce, body, bound), first

    def unwrap(body: bytes, bound: bytes, note: str) -> bytes:
        return ciphers[note].decrypt(body[:12], body[12:], bound)

    return EnvelopeWrapper("aes-gcm", wrap, unwrap, topics=topics, required=required)


def signed(keys: Mapping[str, bytes], *, topics: str, required: bool = True) -> EnvelopeWrapper:
    """Signed by HMAC-SHA256, 32 bytes before the body: readable by all, changed or forged by nobody without a key.

    ``keys``: at least 32 bytes each; rotated as in ``encrypted``. Raises ``InvalidOption``.
    """
    _check(keys, lambda key: len(key) >= 32, "secrets.token_bytes(32)")
    secrets, first = dict(keys), next(iter(keys))

    def mac(id: str, body: bytes, bound: bytes) -> bytes:
        return hmac.digest(secrets[id], len(bound).to_bytes(8, "big") + bound + body, "sha256")

    def wrap(body: bytes, bound: bytes) -> tuple[bytes, str]:
        return mac(first, body, bound) + body, first

    def unwrap(body: bytes, bound: bytes, note: str) -> bytes:
        if not hmac.compare_digest(body[:32], mac(note, body[32:], bound)):
            raise ValueError("the signature is another's")
        return body[32:]

    return EnvelopeWrapper("hmac-sha256", wrap, unwrap, topics=topics, required=required)


def compressed(*, topics: str, limit: int = 64 * 2**20, required: bool = False) -> EnvelopeWrapper:
    """Compressed by zlib. ``limit``: bytes a body may grow to; one that says more is refused before it does."""

    def wrap(body: bytes, bound: bytes) -> tuple[bytes, str]:
        return zlib.compress(body), ""

    def unwrap(body: bytes, bound: bytes, note: str) -> bytes:
        inflating = zlib.decompressobj()
        whole = inflating.decompress(body, limit + 1)
        if not inflating.eof or len(whole) > limit:
            raise ValueError(f"it is cut off, or has more than {limit:,} bytes")
        return whole

    return EnvelopeWrapper("zlib", wrap, unwrap, topics=topics, required=required)


def _check(keys: Mapping[str, bytes], good: Callable[[bytes], bool], mend: str) -> None:
    if not keys:
        raise InvalidOption("there is no key", mend=f'{{"2026-11": key}}; a key: {mend}')
    for id, key in keys.items():
        if not isinstance(id, str) or not id or token(id) != id or not isinstance(key, bytes) or not good(key):
            raise InvalidOption(f"the key {id!r} is none", why="an id is a token, a key bytes of a length", mend=mend)
