"""Webhooks in: ``POST /webhooks/{name}``, verified, then published. EIP: Channel Adapter.

The signature says who sends: there is no token. It is verified on the body as it came, before anything reads it.
Answers: 202 once the bus has accepted it, 200 if it came before, 401 for a signature that is wrong or too old, 404,
408, 413, 422 for what has no id, 429, 503 while the bus is away: the sender tries again. In ``tidings.toml``::

    [[webhooks.in]]
    name = "github"                        # POST /webhooks/github
    topic = "github.{type}"                # a push: github.push
    scheme = "github"
    secrets = ["env:GITHUB_SECRET"]
    key = "repository.full_name"           # a field of the JSON body
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tidings.kernel.errors import InvalidName, InvalidOption, NotFound
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import TOKEN, check_topic, refuse_reserved, token

from .bodies import Intake
from .cloudevents import STRUCTURED, drafts, media_type
from .inbox import Inbox, inbox
from .refusals import Malformed
from .rights import ALL, Principal, Rights
from .schemes import SCHEMES, Headers, is_plain
from .secret import secret
from .site import Site, answering

TYPE, UNTYPED = "{type}", "untyped"
KEY = 500  # characters of a key
STRANGERS = 8  # the part of `limits.intake` that webhooks have together


class WebhookIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Webhooks that somebody sends here.

    ``name``: the last part of the URL. ``topic``: where they are published; ``{type}`` stands for the event's type, its
    dots are the topic's. ``scheme``: whose signatures. ``secrets``: one or, while it is changed, several; ``env:NAME``
    and ``file:/path`` are read at the start. ``tolerance``: how old a signature may be, where the scheme has a time.
    ``remember``: how long the id of a delivery is known. ``key``: the field of a JSON body that is the message's key,
    with dots for what is inside: ``"data.object.customer"``.
    """

    name: str
    topic: str
    secrets: tuple[str, ...]
    scheme: Literal["standard", "github", "stripe"] = "standard"
    tolerance: str | float = "5m"
    remember: str | float = "7d"
    key: str = ""

    def __post_init__(self) -> None:
        if not TOKEN.fullmatch(self.name):
            raise InvalidName(f"a webhook cannot be called {self.name!r}", mend="letters, digits, '-' and '_'")
        parts = self.topic.split(".")
        if parts[0] == TYPE or (TYPE in self.topic and TYPE not in parts):
            mend = "a whole token, and not the first: 'github.{type}'"
            raise InvalidName(f"{TYPE} cannot stand there in {self.topic!r}", mend=mend)
        refuse_reserved(check_topic(self.topic.replace(TYPE, UNTYPED)))
        if not self.secrets:
            raise InvalidOption(f"webhook {self.name!r} has no secret", mend='secrets = ["env:NAME"]')
        for name in ("tolerance", "remember"):
            seconds(getattr(self, name), name)

    def __repr__(self) -> str:
        return f"WebhookIn({self.name!r}, {self.topic!r}, {self.scheme!r})"


def routes(site: Site, hooks: Sequence[WebhookIn] = ()) -> list[BaseRoute]:
    """``POST /webhooks/{name}``. Raises ``InvalidOption`` for two of one name, and for a secret that is not there."""
    receivers = {hook.name: Receiver(hook) for hook in hooks}
    if len(receivers) < len(hooks):
        raise InvalidOption("two webhooks have the same name", mend="give each [[webhooks.in]] its own")
    door = Door(site, receivers)
    return [Route("/webhooks/{name}", answering(door.receive), methods=["POST"])]


class Door:
    """The endpoint. Nobody knows yet who sends a body: such have an intake of their own, and block no known client."""

    def __init__(self, site: Site, receivers: Mapping[str, Receiver]) -> None:
        self.site, self.receivers, limits = site, receivers, site.gateway.limits
        self.intake = Intake(replace(limits, intake=max(limits.body, limits.intake // STRANGERS)))
        self.inbox: Inbox | None = None

    async def receive(self, request: Request) -> Response:
        receiver = self.receivers.get(request.path_params["name"])
        if receiver is None:
            raise NotFound("there is no such webhook", mend="see its name in the configuration: [[webhooks.in]]")
        async with self.intake.body(request, self.site.gateway.limits.body) as body:
            draft = receiver.draft(request.headers, body, time.time())
            gateway = await self.site.ready()
            self.inbox = self.inbox or inbox(gateway)
            new = await self.inbox.admit(receiver.who, draft, receiver.window)
        return JSONResponse({"id": draft.id}, 202 if new else 200)


class Receiver:
    """What one webhook's deliveries are as messages."""

    def __init__(self, hook: WebhookIn) -> None:
        self.hook, self.scheme = hook, SCHEMES[hook.scheme]
        whose = f"webhook {hook.name!r}"
        self.keys = [self.scheme.key(secret(given, whose)) for given in hook.secrets]
        self.tolerance, self.window = seconds(hook.tolerance), seconds(hook.remember)
        self.who = Principal(whose, Rights(publish=ALL))

    def draft(self, headers: Headers, body: bytes, now: float) -> Message[Any]:
        """A delivery as a draft. Its id begins with the webhook's name: what one provider sends hides no other's.

        Raises ``Unverified``, ``Malformed``.
        """
        hook = self.hook
        self.scheme.verify(self.keys, headers, body, now, self.tolerance)
        content_type = headers.get("content-type", "")
        if headers.get("content-encoding", "identity") != "identity" or not is_plain(content_type or "none"):
            raise Malformed("this webhook's body cannot be read", mend="send it uncompressed, with a Content-Type")
        fields = _fields(body)
        told = self.scheme.tell(headers, fields)
        topic, key = _topic(hook.topic, told.type), _key(fields, hook.key)
        draft = Message[Any](topic, body, key=key, source=f"/webhooks/{hook.name}", content_type=content_type)
        if media_type(content_type) == STRUCTURED:  # the event's attributes are in the body: they are signed
            (event,) = drafts(topic, {"content-type": content_type}, body)
            draft = replace(event, key=event.key or key, priority=0, deliver_at=None, reply_to=None)
        return replace(draft, id=f"{hook.name}/{told.id}", type=told.type or topic)


def _fields(body: bytes) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(fields: Any, path: str) -> str | None:
    """The text or number at a path; None where there is none."""
    for name in path.split(".") if path else ():
        fields = fields.get(name) if isinstance(fields, dict) else None
    text = str(fields) if isinstance(fields, str | int) and not isinstance(fields, bool) else ""
    return text[:KEY] if text and text.isprintable() else None


def _topic(template: str, kind: str) -> str:
    tokens = ".".join(token(part) for part in kind.split(".") if part)
    return template.replace(TYPE, tokens or UNTYPED)
