"""One model that all applications agree on, in versions that may be in flight at once (EIP: Canonical Data Model).

    order = Schema("order", 3, topics="orders.>")

    @order.upcast(1, 2)
    def with_currency(old: dict[str, Any]) -> dict[str, Any]:
        return old | {"currency": "EUR"}

    @order.upcast(2, 3)
    def with_lines(old: OrderV2) -> Order: ...

A message says what it is in the header ``schema-version``: ``order/3`` (EIP: Format Indicator). As a middleware the
schema brings each known version to the newest before the handler sees it, so that handlers know no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.inject import plan, where
from tidings.kernel.codec import Decode, decoder, encode
from tidings.kernel.errors import InvalidHandler, InvalidOption, Undecodable
from tidings.kernel.handler import Many, One
from tidings.kernel.message import Message
from tidings.kernel.topics import check_pattern, matches, refuse_reserved
from tidings.router import is_async

from ._rewriting import Rewriting, headed

T = TypeVar("T")
Caster = TypeVar("Caster", bound=Callable[[Any], Any])

HEADER = "schema-version"


class Step(Struct, frozen=True):
    """One translation: a body of a format to a payload of another."""

    to: str
    decode: Decode
    fn: Callable[[Any], Any]


class Schema(Rewriting):
    """A type of messages by its name and newest version, and how what is older or foreign becomes it.

    ``topics``: a topic or pattern; what is sent there by an app or a handler that has this middleware is stamped, and
    what comes from there without a stamp is taken for version ``unversioned`` (default: the newest). Without
    ``topics`` only what is ``stamped`` has a version. Raises ``InvalidOption``, ``InvalidName``.
    """

    def __init__(self, name: str, version: int, *, topics: str = "", unversioned: int | None = None) -> None:
        if not name.isprintable() or not name.isascii() or not name or "/" in name:
            raise InvalidOption(f"a schema cannot be called {name!r}", mend="printable ASCII without '/'")
        for number in (version, 1 if unversioned is None else unversioned):
            if type(number) is not int or not 1 <= number <= version:
                raise InvalidOption(f"{name!r} has no version {number!r}", mend=f"1 to {version}, the newest")
        if unversioned is not None and not topics:
            raise InvalidOption("unversioned= goes with topics=", mend='topics="orders.>"')
        self.name, self.version, self.newest = name, version, f"{name}/{version}"
        self.pattern = refuse_reserved(check_pattern(topics)) if topics else ""
        self.unversioned = self.newest if unversioned is None else f"{name}/{unversioned}"
        self.steps: dict[str, Step] = {}

    def upcast(self, old: int, new: int) -> Callable[[Caster], Caster]:
        """Decorate a function of a payload of version ``old`` that returns it as version ``new``.

        Its parameter's type says how the old body is decoded (default: any JSON). Raises ``InvalidOption``,
        ``InvalidHandler``.
        """
        if type(old) is not int or not 1 <= old < new:
            raise InvalidOption(f"{old!r} to {new!r} is no step up", mend="@schema.upcast(1, 2)")
        return self.translate(f"{self.name}/{old}", new)

    def translate(self, format: str, version: int) -> Callable[[Caster], Caster]:
        """The same for another model's format, ``"erp-order/7"``, to a version of this one (EIP: Message Translator).

        A message of that format says so in the header ``schema-version``.
        """
        if type(version) is not int or not 1 <= version <= self.version:
            raise InvalidOption(f"{self.name!r} has no version {version!r}", mend=f"1 to {self.version}, the newest")
        if format in self.steps:
            other = where(self.steps[format].fn)
            raise InvalidOption(f"{format!r} is translated already", why=f"at {other}", mend="drop one")

        def register(fn: Caster) -> Caster:
            found = plan(fn)
            if is_async(fn) or found.takes != "data" or found.parameters:
                mend = "a plain function of the old payload that returns the new one"
                raise InvalidHandler(f"{fn.__qualname__}() cannot translate", mend=mend, where=where(fn))
            self.steps[format] = Step(f"{self.name}/{version}", decoder(found.type), fn)
            return fn

        return register

    def stamped(self, draft: Message[T]) -> Message[T]:
        """A draft that says it is of the newest version."""
        return headed(draft, HEADER, self.newest)

    async def outgoing(self, message: Message[Any]) -> Message[Any]:
        known = not self.pattern or not matches(self.pattern, message.topic) or message.header(HEADER)
        return message if known else self.stamped(message)

    async def incoming(self, message: Message[Any]) -> Message[Any]:
        format = message.header(HEADER)
        if not format and self.pattern and matches(self.pattern, message.topic):
            format = self.unversioned
        return message if format in ("", self.newest) else self.newer(message, format)

    def newer(self, message: Message[Any], format: str) -> Message[Any]:
        """A sealed message of a format, at the newest version; what is of another schema is left as it is.

        Raises ``Undecodable`` for a version that is not known here.
        """
        body, content_type = message.body, message.content_type
        while format != self.newest:
            step = self.steps.get(format)
            if step is None:
                if format.rpartition("/")[0] != self.name:
                    return message
                mend = "bring this app up to date, then `tidings dead replay`"
                raise Undecodable(f"nothing here makes {format!r} to {self.newest!r}", mend=mend)
            body, content_type = encode(step.fn(step.decode(body, content_type)))
            format = step.to
        return headed(replace(message, body=body, content_type=content_type), HEADER, self.newest)

    def __call__(self, one: One) -> One:
        self._refuse_gaps()
        return super().__call__(one)

    def many(self, many: Many) -> Many:
        """The same around a handler of batches."""
        self._refuse_gaps()
        return super().many(many)

    def _refuse_gaps(self) -> None:
        for step in (*self.steps.values(), Step(self.unversioned, decoder(Any), encode)):
            if step.to != self.newest and step.to not in self.steps:
                old = step.to.rpartition("/")[2]
                mend = f"@schema.upcast({old}, {int(old) + 1})"
                raise InvalidOption(f"nothing makes {step.to!r} to {self.newest!r}", mend=mend)
