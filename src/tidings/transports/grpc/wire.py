"""``tidings.v1`` on the wire: its messages, built from the proto's descriptor, and ours as those and back.

In a pool of their own: who has generated code from the same proto can have it in the same process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from msgspec import Struct, structs

from tidings.kernel import errors
from tidings.kernel.message import JSON, Message
from tidings.kernel.transport import ACK, Ack, Delivery, Failure, Release, Retry, Session, Settlement
from tidings.transports._wire import HEADERS, pairs, unpaired

S = TypeVar("S", bound=Struct)

VERSION = 1
BUS, TRANSPORT = "tidings.v1.Bus", "tidings.v1.Transport"
AUTHORIZATION, DETAILS = "authorization", "tidings-error-bin"  # metadata
PIECE = 1024 * 1024  # bytes after which a frame is full enough
MARGIN = 64 * 1024  # bytes of a message beside its body, and of a frame beside its messages

_set = FileDescriptorSet.FromString((Path(__file__).parent / "tidings_v1.descriptor").read_bytes())
FILE: bytes = _set.file[0].SerializeToString()
_pool = DescriptorPool()
_pool.AddSerializedFile(FILE)


class Types:
    """The proto's messages, by name: ``pb.PublishRequest``."""

    def __getattr__(self, name: str) -> Any:
        kind = GetMessageClass(_pool.FindMessageTypeByName(f"tidings.v1.{name}"))
        setattr(self, name, kind)
        return kind


pb = Types()


# -- messages


def packed(message: Message[Any]) -> Any:
    """A message as it travels; a draft's ``delay`` and ``expires``, too."""
    m = message
    made = pb.Message(
        topic=m.topic,
        body=m.body,
        id=m.id,
        key=m.key,
        content_type=m.content_type,
        time=m.time,
        type=m.type,
        source=m.source,
    )
    if m.headers:
        once = dict(m.headers)
        travel = len(once) == len(m.headers) and HEADERS not in once
        made.headers.update(once if travel else {HEADERS: pairs(m.headers)})
    if m.priority:
        made.priority = m.priority
    for name in RARE:
        value = getattr(m, name)
        if value is not None:
            setattr(made, name, value)
    return made


RARE = ("deliver_at", "expires_at", "correlation_id", "causation_id", "reply_to", "address", "delay", "expires")


def unpacked(m: Any) -> Message[Any]:
    """A message that came."""
    has, headers = m.HasField, tuple(m.headers.items())
    if HEADERS in m.headers:
        headers = unpaired(m.headers[HEADERS]) or headers
    return Message(
        m.topic,
        m.body,
        m.id,
        m.key if has("key") else None,
        m.time,
        m.type,
        m.source,
        m.content_type if has("content_type") else JSON,
        headers or None,
        m.priority,
        m.deliver_at if has("deliver_at") else None,
        m.expires_at if has("expires_at") else None,
        m.reply_to if has("reply_to") else None,
        m.correlation_id if has("correlation_id") else None,
        m.causation_id if has("causation_id") else None,
        m.address if has("address") else None,
    )


def draft(m: Any) -> Message[Any]:
    """A message that somebody wants published."""
    delay, expires = (getattr(m, name) if m.HasField(name) else None for name in ("delay", "expires"))
    return structs.replace(unpacked(m), delay=delay, expires=expires)


# -- what is small


def told(kind: Any, struct: Struct) -> Any:
    """A plain ``Struct`` as the message of the same fields; None is what is not there."""
    return kind(**{name: value for name, value in structs.asdict(struct).items() if value is not None})


def heard(kind: type[S], m: Any) -> S:
    """And back."""
    absent = {field.name for field in m.DESCRIPTOR.fields if field.has_presence and not m.HasField(field.name)}
    return kind(**{name: None if name in absent else getattr(m, name) for name in kind.__struct_fields__})


def refused(error: BaseException) -> Any:
    """An error as it travels; what is not ours says no more than its name."""
    if not isinstance(error, errors.TidingsError):
        return pb.Error(code=errors.BusError.code, what=f"the server failed: {type(error).__name__}")
    parts = {name: getattr(error, name).encode(errors="replace").decode() for name in ("what", "why", "mend")}
    made = pb.Error(code=error.code, after=getattr(error, "after", 0.0), **parts)
    if isinstance(error, errors.PublishFailed):
        for name in ("accepted", "rejected", "unknown"):
            getattr(made, name).extend(getattr(error, name))
    return made


def error(m: Any) -> errors.TidingsError:
    """And back, as the class that has its code; as a ``BusError`` when it is none of the kernel's."""
    kind = _classes().get(m.code, errors.BusError)
    what = m.what if kind.code == m.code else f"{m.code}: {m.what}"
    made = kind(what, why=m.why, mend=m.mend)
    if isinstance(made, errors.PublishFailed):
        made.accepted, made.rejected, made.unknown = list(m.accepted), list(m.rejected), list(m.unknown)
    return made


@cache
def _classes() -> dict[str, type[errors.TidingsError]]:
    found = (each for each in vars(errors).values() if isinstance(each, type))
    return {each.code: each for each in found if issubclass(each, errors.TidingsError)}


def failed(failures: Iterable[Failure]) -> list[Any]:
    return [pb.Failure(index=f.index, kind=f.kind, error=refused(f.error)) for f in failures]


def failures(came: Iterable[Any]) -> list[Failure]:
    return [Failure(f.index, f.kind, error(f.error)) for f in came]


# -- deliveries and settlements


def delivery(m: Any) -> Delivery:
    return Delivery(unpacked(m.message), Session(), m.number, m.failures, m.crashes, m.suspect)


def settled(settlement: Settlement) -> Any:
    made, action = pb.Settlement(number=settlement.delivery.token), settlement.action
    if isinstance(action, Release):
        made.release = action.delay
    elif isinstance(action, Retry):
        made.retry.delay, made.retry.failures, made.retry.why = action.delay, action.failures, action.why
    if settlement.outgoing:
        made.outgoing.extend(map(packed, settlement.outgoing))
    return made


def settlement(m: Any, of: Delivery) -> Settlement:
    action: Ack | Release | Retry = ACK
    if chosen := m.WhichOneof("action"):
        action = Release(m.release) if chosen == "release" else Retry(m.retry.delay, m.retry.failures, m.retry.why)
    return Settlement(of, action, tuple(map(unpacked, m.outgoing)))


# -- frames


def framed(items: Iterable[tuple[int, bytes]]) -> bytes:
    """A message of repeated messages, from the serialized ones and the numbers of their fields: none is copied twice.

    (Protocol Buffers, Encoding: a field of a message is its tag, its length and its bytes.)
    """
    parts = list[bytes]()
    for field, body in items:
        parts += (bytes((field << 3 | 2,)), _varint(len(body)), body)
    return b"".join(parts)


def some(waiting: deque[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Take as many of the first as go in one frame: at least one."""
    taken = [waiting.popleft()]
    size = len(taken[0][1])
    while waiting and (size := size + len(waiting[0][1])) <= PIECE:
        taken.append(waiting.popleft())
    return taken


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def pieces(made: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """The same in runs of up to so many bytes, or of one."""
    run, size = list[Any](), 0
    for item in made:
        more = item.ByteSize() + 8
        if run and size + more > most:
            yield run
            run, size = [], 0
        run.append(item)
        size += more
    if run:
        yield run
