"""Signatures of webhooks: Standard Webhooks, and as GitHub and Stripe write them. Pure functions.

``keys`` are what the schemes make of their secrets (``standard_key``, ``plain_key``): several, so that a secret can be
changed while both sides run. ``headers`` are found by lower-case name. ``body`` is what travelled, byte for byte. Times
are Unix seconds, ``tolerance`` seconds that the clocks of both sides, and the way between them, may be apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence

from tidings.kernel.errors import InvalidOption

from .refusals import Unverified

PREFIX = "whsec_"
TOLERANCE = 300.0

Keys = Sequence[bytes]


def new_secret() -> str:
    """A secret for Standard Webhooks: 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def standard_key(secret: str) -> bytes:
    """The key of a Standard Webhooks secret: what is Base64 after ``whsec_``. Raises ``InvalidOption``."""
    text = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        mend = "`whsec_` and Base64, as tidings.gateway.signatures.new_secret() makes one"
        raise InvalidOption("this is no secret for Standard Webhooks", mend=mend)
    return key


def plain_key(secret: str) -> bytes:
    """The key of a secret of GitHub or Stripe: its text, ``whsec_`` and all. Raises ``InvalidOption`` for none."""
    if not secret:
        raise InvalidOption("a webhook's secret is empty", mend="what was agreed with the sender")
    return secret.encode()


def sign_standard(keys: Keys, id: str, at: float, body: bytes) -> dict[str, str]:
    """Headers of Standard Webhooks 1.0 for an attempt ``at`` a time to deliver ``id``: a signature for each key."""
    stamp = str(int(at))
    signed = f"{id}.{stamp}.".encode() + body
    made = " ".join(f"v1,{_base64(key, signed)}" for key in keys)
    return {"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": made}


def verify_standard(
    keys: Keys, headers: Mapping[str, str], body: bytes, now: float, tolerance: float = TOLERANCE
) -> None:
    """Raises ``Unverified`` unless one of the keys signed it, about now. Of a signature's versions, ``v1``."""
    id, stamp = _of(headers, "webhook-id"), _of(headers, "webhook-timestamp")
    given = _of(headers, "webhook-signature").split(" ")
    _timely(stamp, now, tolerance)
    signed = f"{id}.{stamp}.".encode() + body
    _one_of((f"v1,{_base64(key, signed)}" for key in keys), given)


def sign_github(key: bytes, body: bytes) -> dict[str, str]:
    """The header that GitHub signs with: the body only, neither time nor id."""
    return {"x-hub-signature-256": f"sha256={_hex(key, body)}"}


def verify_github(
    keys: Keys, headers: Mapping[str, str], body: bytes, now: float = 0.0, tolerance: float = TOLERANCE
) -> None:
    """Raises ``Unverified`` unless one of the keys signed it. It says nothing of when: the scheme has no time."""
    _one_of((f"sha256={_hex(key, body)}" for key in keys), [_of(headers, "x-hub-signature-256")])


def sign_stripe(keys: Keys, at: float, body: bytes) -> dict[str, str]:
    """The header that Stripe signs with: a time, and a ``v1`` for each key."""
    stamp = str(int(at))
    made = (f"v1={_hex(key, stamp.encode() + b'.' + body)}" for key in keys)
    return {"stripe-signature": ",".join((f"t={stamp}", *made))}


def verify_stripe(
    keys: Keys, headers: Mapping[str, str], body: bytes, now: float, tolerance: float = TOLERANCE
) -> None:
    """Raises ``Unverified`` unless one of the keys signed it, about now. Of a signature's versions, ``v1``."""
    parts = [part.strip() for part in _of(headers, "stripe-signature").split(",")]
    stamp = next((part[2:] for part in parts if part.startswith("t=")), "")
    _timely(stamp, now, tolerance)
    _one_of((f"v1={_hex(key, stamp.encode() + b'.' + body)}" for key in keys), parts)


def _of(headers: Mapping[str, str], name: str) -> str:
    if value := headers.get(name):
        return value
    raise Unverified(f"this webhook has no header {name!r}", mend="send it signed, in the scheme that was agreed")


def _timely(stamp: str, now: float, tolerance: float) -> None:
    if not stamp.isdecimal() or len(stamp) > 12:
        raise Unverified("this webhook's time is no number of seconds")
    if abs(now - int(stamp)) > tolerance:
        why = f"its time is {int(stamp) - now:+.0f} s from ours, and {tolerance:g} s are allowed"
        raise Unverified("this webhook is too old, or from the future", why=why)


def _one_of(expected: Iterable[str], given: Sequence[str]) -> None:
    """How long it takes to compare says nothing of what was expected."""
    sent = [text.encode("utf-8", "replace") for text in given]
    for signature in expected:
        if any(hmac.compare_digest(signature.encode(), text) for text in sent):
            return
    raise Unverified("this webhook's signature is wrong")


def _base64(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _hex(key: bytes, signed: bytes) -> str:
    return hmac.digest(key, signed, hashlib.sha256).hex()
