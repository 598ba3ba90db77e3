"""EIP: Messaging Gateway. A ``Protocol`` of the domain whose methods send, or ask and wait."""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tidings.app import App
from tidings.channels import Meta, Service, Topic
from tidings.kernel.errors import Duration, InvalidHandler, InvalidOption, nearest
from tidings.kernel.message import seconds
from tidings.kernel.topics import captures

if TYPE_CHECKING:
    from typing_extensions import TypeForm

P = TypeVar("P")

Channel = Topic[Any] | Service[Any, Any]

MORE = frozenset(Meta.__annotations__)  # what a sending method may take beside the payload, and the topic's captures


def gateway(app: App, protocol: TypeForm[P], /, *, timeout: Duration = 30.0, **channels: Channel) -> P:
    """An object of a ``Protocol``, each of whose methods has a topic or a service. EIP: Messaging Gateway::

        class Shop(Protocol):
            async def price(self, quote: Quote, /) -> Price: ...
            async def place(self, order: Order, /, *, key: str) -> None: ...

        shop = gateway(app, Shop, price=prices, place=placed)

    A method of a topic publishes its argument and returns None when the bus has accepted it; further parameters are
    the topic's captures, and what ``app.publish`` takes (``key``, ``delay``, …). A method of a service asks and
    returns the reply; ``def`` instead of ``async def``, with an ``AsyncIterator``, gets the replies of a stream.
    ``timeout``: of a request. The app must be open when a method is called; errors are those of ``publish`` and
    ``request``.

    Raises ``InvalidHandler`` for a method without a channel, or whose types do not fit it, and ``InvalidOption``.
    """
    if not (inspect.isclass(protocol) and getattr(protocol, "_is_protocol", False)):
        raise InvalidHandler(f"{protocol!r} is no Protocol", mend="class Shop(Protocol): ...")
    wait, methods = seconds(timeout, "timeout"), _methods(protocol)
    for name in channels.keys() - methods.keys():
        raise InvalidOption(f"{protocol.__name__} has no method {name!r}", mend=nearest(name, methods))
    calls: dict[str, Any] = {}
    for name, method in methods.items():
        channel, said = channels.get(name), f"{protocol.__name__}.{name}()"
        if isinstance(channel, Topic):
            calls[name] = _sending(app, channel, method, said)
        elif isinstance(channel, Service):
            calls[name] = _asking(app, channel, method, said, wait)
        else:
            raise InvalidHandler(f"{said} has no topic and no service", mend=f"gateway(app, ..., {name}=topic)")
    made: Any = type(protocol.__name__, (), {"__slots__": (), **{n: staticmethod(call) for n, call in calls.items()}})()
    return made  # type: ignore[no-any-return]


def _methods(protocol: type) -> dict[str, Callable[..., Any]]:
    found: dict[str, Any] = {}
    for cls in reversed(protocol.__mro__):
        if getattr(cls, "_is_protocol", False) and cls.__module__ != "typing":
            found |= dict.fromkeys(inspect.get_annotations(cls)) | vars(cls)
    public = {name: member for name, member in found.items() if not name.startswith("_")}
    for name, member in public.items():
        if not inspect.isfunction(member):
            raise InvalidHandler(f"{protocol.__name__}.{name} is no method", mend="a gateway has methods only")
    return public


def _sending(app: App, topic: Topic[Any], method: Callable[..., Any], said: str) -> Callable[..., Any]:
    taken, returned, more = _signature(method, said)
    holes = captures(topic.template) if not topic.publishable else {}
    _fits(taken, topic.type, f"{said} takes", f"{topic.name!r} carries")
    if not inspect.iscoroutinefunction(method) or returned is not type(None):
        raise InvalidHandler(f"{said} publishes, and so returns nothing", mend="async def ... -> None")
    if unknown := more - MORE - holes.keys():
        name = min(unknown)
        raise InvalidHandler(f"{said} takes {name!r}, which nothing uses", mend=nearest(name, {*MORE, *holes}))
    if missing := holes.keys() - more:
        name = min(missing)
        raise InvalidHandler(f"{said} does not say {name!r} of {topic.name!r}", mend=f"{name}: str, or topic.bind()")

    async def send(data: Any, /, **given: Any) -> None:
        to = topic.bind(**{name: given.pop(name) for name in holes}) if holes else topic
        await app.publish(to, data, **given)

    return send


def _asking(app: App, service: Service[Any, Any], method: Callable[..., Any], said: str, wait: float) -> Any:
    taken, returned, more = _signature(method, said)
    _fits(taken, service.request, f"{said} takes", f"{service.name!r} is asked")
    if more:
        raise InvalidHandler(f"{said} takes {min(more)!r}, which nothing uses", mend="one argument: what is asked")
    if inspect.iscoroutinefunction(method):
        _fits(service.reply, returned, f"{service.name!r} replies", f"{said} returns")
        return lambda data, /: app.request(service, data, timeout=wait)
    if get_origin(returned) is not AsyncIterator:
        raise InvalidHandler(f"{said} does not wait", mend="async def ... -> R, or def ... -> AsyncIterator[R]")
    _fits(service.reply, get_args(returned)[0], f"{service.name!r} replies", f"{said} yields")
    return lambda data, /: app.request_stream(service, data, timeout=wait)


def _signature(method: Callable[..., Any], said: str) -> tuple[Any, Any, set[str]]:
    """What a method takes, what it returns, and the names of its further parameters."""
    try:
        hints = get_type_hints(method)
    except NameError as error:
        mend = "define the name where the module can see it, not inside a function"
        raise InvalidHandler(f"an annotation of {said} cannot be resolved", why=str(error), mend=mend) from None
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if not parameters or parameters[0].kind is parameters[0].KEYWORD_ONLY:
        raise InvalidHandler(f"{said} takes nothing to send", mend="def method(self, data: T, /)")
    for parameter in parameters[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise InvalidHandler(f"{said} takes {parameter.name!r} by position", mend="write a * before it")
    first, *others = (parameter.name for parameter in parameters)
    return hints.get(first, Any), hints.get("return", Any), set(others)


def _fits(given: Any, wanted: Any, gives: str, wants: str) -> None:
    """Raises ``InvalidHandler`` unless each value of one type is one of the other, as far as can be told here."""
    if not all(any(_is(one, other) for other in _members(wanted)) for one in _members(given)):
        raise InvalidHandler(f"{gives} {_name(given)}, and {wants} {_name(wanted)}", mend="let both be the same type")


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is(one: Any, other: Any) -> bool:
    if Any in (one, other) or other is object or one == other:
        return True
    return inspect.isclass(one) and inspect.isclass(other) and issubclass(one, other)


def _name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(kind)
