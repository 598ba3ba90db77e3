"""The same thing said in several foreign formats becomes one canonical type (EIP: Normalizer).

    normal = normalizer(app, "partners.orders.>", to=orders, invalid=unreadable)

    @normal.translator(content_type="text/csv")
    def from_csv(text: str) -> Iterator[Order]: ...

    @normal.translator(topic="partners.orders.acme", when=lambda message: message.header("x-version") == "2")
    def from_acme(order: AcmeOrder) -> Order: ...

What no translator takes, or its translator finds wrong, goes to the invalid-message channel as it came (EIP: Invalid
Message Channel), with headers that say why and where from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec import UNSET, DecodeError, Struct
from msgspec.structs import replace

from tidings.channels import Topic
from tidings.inject import plan, where
from tidings.kernel.codec import Decode, decoder
from tidings.kernel.errors import InvalidHandler, InvalidOption, Reject, Undecodable, text_of
from tidings.kernel.handler import Yielded, collected
from tidings.kernel.message import Message, opened
from tidings.kernel.topics import check_pattern, matches
from tidings.router import Router

from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

    from ._splits import Translates

T = TypeVar("T")

WRONG = (Undecodable, Reject, ValueError, DecodeError)  # what says that a message is wrong, and no program


class Translator(Struct, frozen=True):
    """One format: what its messages have, and how they are read."""

    content_type: str
    pattern: str
    when: Callable[[Message[bytes]], bool] | None
    fn: Callable[[Any], Any]
    decode: Decode
    whole: bool

    def takes(self, message: Message[bytes]) -> bool:
        """Whether a message is in this format."""
        given = message.content_type.partition(";")[0].strip().lower()
        if self.content_type not in ("", given) or (self.pattern and not matches(self.pattern, message.topic)):
            return False
        return self.when is None or self.when(message)


class Normalizer(Generic[T]):
    """The translators of one normalizer; the first that takes a message reads it, in the order they are declared."""

    def __init__(self, to: Topic[T], key: Callable[[T], str | None] | None, invalid: Topic[bytes] | None) -> None:
        self.to, self.key, self.invalid = to, key, invalid
        self.translators: list[Translator] = []

    def translator(
        self, *, content_type: str = "", topic: str = "", when: Callable[[Message[bytes]], bool] | None = None
    ) -> Translates[T]:
        """Decorate a function of a foreign payload, or of its message, that returns a canonical one; or yields several,
        or returns ``None`` for nothing. It may be async; a plain one runs on the loop.

        Its parameter's type says how a body is decoded. ``content_type`` (without parameters), ``topic`` (a pattern)
        and ``when`` say what it takes; all that are given must hold. ``ValueError``, ``Reject`` and what cannot be
        decoded say that the message is wrong; another error is a failure of the handler, and it is tried again.

        Raises ``InvalidHandler``, ``InvalidOption``, ``InvalidName``.
        """
        if when is not None and not callable(when):
            raise InvalidOption(f"when cannot be {when!r}", mend="a function of a message: it is in this format")
        pattern, kind = check_pattern(topic) if topic else "", content_type.strip().lower()

        def register(fn: Callable[[Any], Any]) -> Any:
            found = plan(fn)
            if found.parameters:
                mend = "a function of a foreign payload, or of its message"
                raise InvalidHandler(f"{fn.__qualname__}() takes more than that", mend=mend, where=where(fn))
            whole = found.takes == "message"
            self.translators.append(Translator(kind, pattern, when, fn, decoder(found.type), whole))
            return fn

        return register  # type: ignore[return-value]

    async def normalize(self, message: Message[bytes]) -> list[Message[Any]]:
        """The canonical messages of a foreign one, as drafts; or it, on its way to the invalid-message channel."""
        try:
            for translator in self.translators:
                if translator.takes(message):
                    payload = translator.decode(message.body, message.content_type)
                    result = await collected(translator.fn(opened(message, payload) if translator.whole else payload))
                    payloads = result if isinstance(result, Yielded) else [result]
                    return [self._canonical(one, message) for one in payloads if one is not None]
            raise Undecodable("no translator takes it", why=f"content type {message.content_type!r}", mend="write one")
        except WRONG as error:
            if self.invalid is None:
                raise error if isinstance(error, Reject | Undecodable) else Reject(text_of(error)) from error
            return [_as_it_came(message, self.invalid, error)]

    def _canonical(self, payload: T, message: Message[bytes]) -> Message[T]:
        return self.to(payload, key=message.key if self.key is None else self.key(payload))


def normalizer(
    app: Router,
    source: Topic[bytes] | str,
    /,
    *,
    to: Topic[T],
    key: Callable[[T], str | None] | None = None,
    invalid: Topic[bytes] | None = None,
    **options: Unpack[Durable],
) -> Normalizer[T]:
    """Publish to ``to`` what its translators make of the messages of a topic or pattern.

    ``key``: of each canonical message; default the foreign one's. ``invalid``: where wrong messages go; without it, to
    the dead letters. ``options`` are those of ``app.on``; ``group`` is ``<app>.normalize`` unless given.

    Raises ``InvalidOption``, ``InvalidName``.
    """
    pattern, bus = (source.pattern, source.bus) if isinstance(source, Topic) else (check_pattern(source), "")
    for name, topic in (("to", to), ("invalid", invalid)):
        if topic is not None and not (isinstance(topic, Topic) and topic.publishable):
            raise InvalidOption(f"{name} cannot be {topic!r}", mend='one topic: Topic("orders.placed", Order)')
        if topic is not None and matches(pattern, topic.name) and topic.bus == options.get("bus", bus):
            raise InvalidOption(f"{name}={topic.name!r} comes back to {pattern!r}", mend="give it another name")
    if isinstance(source, Topic) and source.type not in (bytes, Any):
        raise InvalidOption(f"{source!r} is in one format already", mend=f"Topic({source.name!r}, bytes)")
    made = Normalizer(to, key, invalid)

    async def normalize(message: Message[bytes]) -> list[Message[Any]]:
        return await made.normalize(message)

    describe(normalize, "normalizer", publishes=(to, invalid) if invalid else (to,))
    listen: Any = app.on
    listen(source, **options)(normalize)
    return made


def _as_it_came(message: Message[bytes], invalid: Topic[bytes], error: BaseException) -> Message[bytes]:
    text = f"{error.what}: {error.why}" if isinstance(error, Undecodable) else text_of(error)
    reason = " ".join(f"{type(error).__name__}: {text}".split())[:1000]  # one line: some buses' headers have no others
    said = ("invalid-topic", message.topic), ("invalid-reason", reason)
    headers = (*(message.headers or ()), *said)
    draft = invalid(b"", key=message.key)
    return replace(draft, data=UNSET, body=message.body, content_type=message.content_type, headers=headers)
