"""What a gateway refuses, beside what the bus refuses: who asks, what for, and how much of it."""

from __future__ import annotations

from tidings.kernel.errors import TidingsError


class Refused(TidingsError, code="TDG-E060"):
    """A gateway did not do what a client asked."""


class Unauthenticated(
    Refused, code="TDG-E061", mend="send `Authorization: Bearer <token>`; `tidings token add` makes one"
):
    """The client did not say who it is, or its token or certificate is not known."""


class Forbidden(Refused, code="TDG-E062"):
    """The client is known, and has no right to this."""


class Limited(Refused, code="TDG-E063", mend="wait for as long as `Retry-After` says, or raise the limit"):
    """The client asked for more than its limits allow. ``after``: seconds until it may ask again."""

    after: float = 1.0


class TooSlow(Refused, code="TDG-E064", mend="read faster, or follow fewer topics"):
    """The client did not read what it asked for; it was let go so that nobody else waits for it."""


class Malformed(Refused, code="TDG-E065"):
    """What the client sent has no meaning here."""


class Unverified(Refused, code="TDG-E066", mend="compare the secret on both sides, and the clocks"):
    """A webhook's signature is missing, wrong or too old."""


class UnsupportedMediaType(Refused, code="TDG-E067", mend="send application/json, or application/cloudevents+json"):
    """The client sent a content type that cannot be read here."""
