"""Webhooks out: a durable handler that POSTs each message as a CloudEvent, signed (Standard Webhooks 1.0).

What an answer means is what that specification says: 2xx is done; 410 Gone, the receiver wants no more: to the dead
letters at once; everything else, redirects, timeouts and refused connections too, is a failure and tried again, later
each time, for about two and a half days. In ``tidings.toml``::

    [[webhooks.out]]
    name = "billing"                       # group <app>.webhook-billing
    pattern = "orders.>"
    url = "https://billing.example/hooks"
    secrets = ["env:BILLING_SECRET"]
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, quote, urlsplit

from msgspec import Struct

from tidings import App, Backoff, Delivery, Depends, Message, Reject, Retry, __version__
from tidings.kernel.errors import InvalidName, InvalidOption, MissingExtra
from tidings.kernel.message import seconds
from tidings.kernel.topics import TOKEN
from tidings.patterns._pattern import describe

from .cloudevents import STRUCTURED, binary, structured
from .secret import secret
from .signatures import sign_standard, standard_key

LEAST_KEY = 24  # bytes; Standard Webhooks 1.0, "Signature scheme"
NAME, PRINTABLE = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+"), re.compile(r"[!-~]+")  # RFC 9110, section 5.6.2
OURS = ("content-", "webhook-", "ce-", "host", "connection", "transfer-encoding", "user-agent")


class WebhookOut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages that are sent to a URL.

    ``pattern`` and ``bus``: which. ``secrets``: one or, while it is changed, several. ``mode``: ``structured``, all of
    the event in the body, which is signed; ``binary``, the message's own body, and its attributes in headers, which are
    not. ``headers``: more of them. ``timeout``: for one attempt. ``concurrency``: attempts at once. ``attempts``,
    ``first``, ``factor``, ``limit``: as in ``Backoff``; ``ordered``: as in ``app.on``. ``private``: the URL may lead
    into a private network, to this machine, and over plain HTTP.

    ``url``, ``secrets`` and ``headers`` may be ``env:NAME`` or ``file:/path``, read at the start.
    """

    name: str
    pattern: str
    url: str
    secrets: tuple[str, ...]
    mode: Literal["structured", "binary"] = "structured"
    headers: dict[str, str] = {}
    timeout: str | float = "20s"
    concurrency: int = 16
    attempts: int = 12
    first: str | float = "5s"
    factor: float = 4.0
    limit: str | float = "12h"
    ordered: bool = False
    private: bool = False
    bus: str = ""

    def __post_init__(self) -> None:
        if not TOKEN.fullmatch(self.name):
            raise InvalidName(f"a webhook cannot be called {self.name!r}", mend="letters, digits, '-' and '_'")
        if not self.secrets:
            mend = "secrets = ['env:NAME']; tidings.gateway.signatures.new_secret() makes one"
            raise InvalidOption(f"webhook {self.name!r} has no secret", mend=mend)

    def __repr__(self) -> str:
        return f"WebhookOut({self.name!r}, {self.pattern!r})"


def webhooks(app: App, hooks: Sequence[WebhookOut]) -> None:
    """Send messages to URLs, for as long as the app runs: a durable group ``<app>.webhook-<name>`` for each.

    At least once: a receiver tells by ``webhook-id``, the message's id, what it had before. Raises ``InvalidOption``,
    ``InvalidName``, ``DuplicateGroup``, ``MissingExtra``; what the bus cannot do is refused at start-up.
    """
    for hook in hooks:
        _register(app, hook, Sender(hook))


def _register(app: App, hook: WebhookOut, sender: Sender) -> None:
    async def connections() -> AsyncIterator[Any]:
        async with sender.outside.pool(hook.concurrency, private=hook.private) as pool:
            yield pool

    async def send(message: Message[bytes], delivery: Delivery, pool: Any) -> None:
        await sender.send(message, delivery, pool)

    shared = Annotated[Any, Depends(connections, scope="app")]
    send.__annotations__ = {"message": Message[bytes], "delivery": Delivery, "pool": shared}
    send.__name__ = send.__qualname__ = f"webhook-{hook.name}"
    register = app.on(
        hook.pattern,
        group=f"{app.name}.webhook-{hook.name}",
        bus=hook.bus,
        ordered=hook.ordered,
        concurrency=hook.concurrency,
        timeout=2 * sender.timeout,  # the attempt has its own
        backoff=sender.backoff,
    )
    register(describe(send, "channel adapter"))


class Sender:
    """One configured webhook: attempts to deliver to it. Raises ``InvalidOption``, ``MissingExtra``."""

    def __init__(self, hook: WebhookOut) -> None:
        self.hook, self.whose, self.outside = hook, f"webhook {hook.name!r}", _outside()
        self.timeout = seconds(hook.timeout, "timeout")
        self.limit = seconds(hook.limit, "limit")
        self.backoff = Backoff(attempts=hook.attempts, first=hook.first, factor=hook.factor, limit=hook.limit)
        self.keys = [standard_key(secret(given, self.whose)) for given in hook.secrets]
        if min(map(len, self.keys)) < LEAST_KEY:
            raise InvalidOption(f"a secret of {self.whose} is short", mend=f"at least {LEAST_KEY} bytes before Base64")
        self.url = _url(secret(hook.url, self.whose), self.whose)
        if not hook.private and self._is_private(urlsplit(self.url)):
            why = "it is plain HTTP, or leads into a private network"
            raise InvalidOption(f"the URL of {self.whose} is refused", why=why, mend="private = true, if that is meant")
        self.headers = {"user-agent": f"Tidings/{__version__}", **_headers(hook.headers, self.whose)}

    async def send(self, message: Message[bytes], delivery: Delivery, pool: Any) -> None:
        """One attempt. Raises ``Retry`` or ``Reject`` unless the receiver took it."""
        headers, body = self.request(message, time.time())
        try:
            status, after = await self.outside.post(pool, self.url, headers, body, self.timeout)
        except TimeoutError:
            raise Retry(None, f"{self.whose} did not answer within {self.timeout:g} s") from None
        if 200 <= status < 300:
            return
        if status == 410:
            raise Reject(f"{self.whose} answered 410 Gone: it wants no more")
        raise Retry(self.wait(delivery.failures + 1, after, time.time()), f"{self.whose} answered {status}")

    def wait(self, failures: int, after: str, now: float) -> float:
        """Seconds to the next attempt: as ``Retry-After`` asks, but no sooner than the backoff, nor after ``limit``."""
        return max(self.backoff.delay(failures), min(retry_after(after, now), self.limit))

    def request(self, message: Message[Any], now: float) -> tuple[dict[str, str], bytes]:
        """Headers and body of an attempt."""
        if self.hook.mode == "binary":
            headers, body = binary(message)
        else:
            headers, body = {"content-type": STRUCTURED}, structured(message)
        id = quote(message.id, safe="").replace(".", "%2E")  # a full stop divides what is signed
        return {**self.headers, **headers, **sign_standard(self.keys, id, now, body)}, body

    def _is_private(self, url: SplitResult) -> bool:
        """As far as its text tells: a name is judged when it is connected to."""
        try:
            return url.scheme == "http" or not self.outside.is_public(url.hostname or "")
        except ValueError:
            return url.hostname == "localhost"


def retry_after(after: str, now: float) -> float:
    """``Retry-After`` (RFC 9110, section 10.2.3) as seconds from now; 0 for none, and for what is none."""
    if after.isascii() and after.isdecimal():
        return float(after)
    try:
        at = parsedate_to_datetime(after)
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def _url(url: str, whose: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and parts.hostname and not parts.username and parts.port != 0
    except ValueError:
        good = False
    if not good or not PRINTABLE.fullmatch(url):
        raise InvalidOption(
            f"the URL of {whose} is none", mend="https://host/path, without a user: headers can name one"
        )
    return url


def _headers(given: Mapping[str, str], whose: str) -> dict[str, str]:
    headers = {name.lower(): secret(value, whose) for name, value in given.items()}
    for name, value in headers.items():
        if not NAME.fullmatch(name) or name.startswith(OURS):
            raise InvalidOption(f"{whose} cannot have a header {name!r}", mend="a name of your own")
        if not PRINTABLE.fullmatch(value.replace(" ", "")):
            raise InvalidOption(f"header {name!r} of {whose} has no value that can be sent", mend="printable ASCII")
    return headers


def _outside() -> Any:
    try:
        from . import outside
    except ImportError as error:
        mend = "pip install 'tidings[serve]'"
        raise MissingExtra("webhooks need a package that is not installed", why=str(error), mend=mend) from error
    return outside
