"""An app's channels, operations and messages as an AsyncAPI 3.1 document."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from itertools import count
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from tidings import App, Service, Topic
from tidings.assembly import group_of
from tidings.kernel.codec import encode
from tidings.kernel.message import JSON
from tidings.kernel.topics import CAPTURE, REPLY, REQUEST
from tidings.router import Registration
from tidings.topology.wiring import asked, defined, sent

from .project import version_of
from .schemas import schemas_of

VERSION = "3.1.0"


def document(app: App, servers: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """The AsyncAPI document of an app with these servers of its buses."""
    made = _Document(app)
    for r in app.registrations:  # first: these operations have the names of groups, the others find another one
        made.receive(r)
    for r in app.registrations:
        for topic in sent(r):
            made.send(r, topic)
        for service in asked(r):
            made.ask(r, service)
    for topic in defined(app):
        made.channel(topic.template, topic.bus, topic.type)
    return made.whole(version_of(app), servers)


class _Document:
    """The channels, operations and message types of one app, as they are come across."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.channels: dict[str, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str], str] = {}  # (bus, pattern) → channel
        self.operations: dict[str, dict[str, Any]] = {}
        self.sending: dict[tuple[str, str], str] = {}  # (what it does, channel) → operation
        self.types: dict[str, Any] = {}  # message → payload

    def receive(self, r: Registration) -> None:
        """The operation of a handler that takes messages, or answers requests."""
        if r.role == "tick":
            return
        group = "" if r.live else group_of(r, self.app.name)
        name = _free(group or f"{self.app.name}.{r.fn.__name__}", self.operations)
        if r.role == "answer":
            reply, streams = _reply(r)
            made = self._asking("receive", r.template, r.bus, r.plan.type, reply)
            made |= {"x-tidings-stream": True} if streams else {}
        else:
            made = self._operation("receive", r.template, r.bus, r.plan.type)
            made |= {"x-tidings-group": group} if group else {}
        self.operations[name] = {**made, **_documentation(r)}

    def send(self, r: Registration, topic: Topic[Any]) -> None:
        """The operation of all handlers that send to a topic."""
        self._sender("send", self._operation("send", topic.template, topic.bus, topic.type), r)

    def ask(self, r: Registration, service: Service[Any, Any]) -> None:
        """The operation of all handlers that ask a service."""
        made = self._asking("send", service.name, service.bus, service.request, service.reply)
        self._sender("ask", made, r)

    def _sender(self, verb: str, made: dict[str, Any], r: Registration) -> None:
        key = made["channel"]["$ref"].rpartition("/")[2]
        name = self.sending.setdefault((verb, key), _free(f"{verb}.{key}", self.operations))
        made = self.operations.setdefault(name, {**made, "x-tidings-senders": []})
        made["x-tidings-senders"].append(group_of(r, self.app.name))

    def channel(self, template: str, bus: str, *types: Any) -> tuple[str, list[dict[str, str]]]:
        """(its key, references to the messages of these types) of a channel, which is made if it is new."""
        pattern = CAPTURE.sub("*", template)
        if (bus, pattern) not in self.keys:
            address, parameters = _address(template)
            key = _free(_key(f"{bus}.{template}" if bus else template), self.channels)
            self.channels[key] = {"address": address, **({"parameters": parameters} if parameters else {})}
            self.keys[bus, pattern] = key
        key = self.keys[bus, pattern]
        messages = self.channels[key].setdefault("messages", {})
        names = [self._message(kind) for kind in types]
        messages |= {name: {"$ref": f"#/components/messages/{name}"} for name in names}
        return key, [{"$ref": f"#/channels/{key}/messages/{name}"} for name in names]

    def _operation(self, action: str, template: str, bus: str, kind: Any) -> dict[str, Any]:
        key, messages = self.channel(template, bus, kind)
        return {"action": action, "channel": {"$ref": f"#/channels/{key}"}, "messages": messages}

    def _asking(self, action: str, service: str, bus: str, request: Any, reply: Any) -> dict[str, Any]:
        key, replies = self.channel(REPLY + service, bus, reply)
        self.channels[key]["address"] = None  # each process that asks has its own
        to = {"location": "$message.header#/tdgreplyto", "description": "Where the asking process waits."}
        answer = {"address": to, "channel": {"$ref": f"#/channels/{key}"}, "messages": replies}
        return {**self._operation(action, REQUEST + service, bus, request), "reply": answer}

    def _message(self, kind: Any) -> str:
        name = _key(_type_name(kind))
        if self.types.get(name, kind) != kind:
            known = next((n for n, k in self.types.items() if k == kind), None)
            name = known or _free(_key(f"{getattr(kind, '__module__', 'a')}.{name}"), self.types)
        self.types[name] = kind
        return name

    def whole(self, version: str, servers: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
        """The document. Channels name their servers where there are several buses."""
        named = {
            (name or "default") + (f"-{number}" if number > 1 else ""): (name, server)
            for name, several in servers.items()
            for number, server in enumerate(several, 1)
        }
        for (bus, _), key in self.keys.items() if len(servers) > 1 else ():
            on = [{"$ref": f"#/servers/{name}"} for name, (its, _) in named.items() if its == bus]
            self.channels[key]["servers"] = on
        schemas, parts = schemas_of(self.types.values())
        messages = {
            name: {"name": name, "contentType": _content_type(kind), "payload": _payload(kind, schema)}
            for (name, kind), schema in zip(self.types.items(), schemas, strict=True)
        }
        return {
            "asyncapi": VERSION,
            "info": {"title": self.app.name, "version": version},
            "defaultContentType": JSON,
            "servers": {name: server for name, (_, server) in named.items()},
            "channels": self.channels,
            "operations": self.operations,
            "components": {"messages": messages, "schemas": parts},
        }


def _reply(r: Registration) -> tuple[Any, bool]:
    """(type, whether there are many) of what an answerer replies; of one without a service, as it is annotated."""
    try:
        hint = get_type_hints(r.fn).get("return", Any)
    except Exception:  # a name that only a type checker knows
        hint = Any
    streams = inspect.isasyncgenfunction(r.fn) or inspect.isgeneratorfunction(r.fn)
    if streams:
        hint = (*get_args(hint), Any)[0]
    return (hint if r.reply is None else r.reply), streams


def _documentation(r: Registration) -> dict[str, str]:
    """A handler's name, and what its docstring says."""
    summary, _, more = (r.fn.__doc__ or "").strip().partition("\n")
    found = {"title": r.fn.__name__, "summary": summary.strip(), "description": more.strip()}
    return {name: text for name, text in found.items() if text}


def _key(name: str) -> str:
    """A name as keys are: no character that a reference would have to escape."""
    return re.sub(r"[^\w.-]+", "_", CAPTURE.sub(r"\1", name).replace(">", "rest").replace("*", "any"), flags=re.A)


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """``key``, or the first ``key_2``, ``key_3``, ... that is not taken."""
    names = (f"{key}_{number}" if number > 1 else key for number in count(1))
    return next(name for name in names if name not in taken)


def _address(template: str) -> tuple[str, dict[str, dict[str, str]]]:
    """An address with a parameter for each capture and wildcard."""
    parts, parameters = list[str](), dict[str, dict[str, str]]()
    for number, part in enumerate(template.split("."), 1):
        name = {"*": f"token{number}", ">": "rest"}.get(part, part.strip("{}"))
        if part in ("*", ">") or CAPTURE.fullmatch(part):
            parameters[name] = {"description": "One token or more." if part == ">" else "One token."}
            part = f"{{{name}}}"
        parts.append(part)
    return ".".join(parts), parameters


def _type_name(kind: Any) -> str:
    if kind is Any:
        return "Any"
    members = [_type_name(member) for member in get_args(kind) if member is not NoneType]
    if get_origin(kind) in (Union, UnionType):
        return "_or_".join(members)
    return "_".join([str(getattr(kind, "__name__", kind)), *members])


def _content_type(kind: Any) -> str:
    return encode(kind())[1] if kind in (str, bytes) else JSON


def _payload(kind: Any, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "string", "format": "binary"} if kind is bytes else schema
