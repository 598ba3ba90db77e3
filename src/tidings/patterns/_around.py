"""Handlers that are made of a user's function, and have its name and place: in groups, logs and errors."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import Parameter
from typing import Any, get_type_hints

from tidings.kernel.handler import collected, gathered
from tidings.kernel.message import Message
from tidings.router import is_async
from tidings.state import State

MESSAGE = "_tidings_message"


def around(fn: Callable[..., Any], then: Callable[[Any, Message[Any]], Any]) -> Callable[..., Any]:
    """A handler with the function's name, place and parameters, that returns ``then(what it returned, the message)``.

    It runs where the function would: an async one on the loop, a plain one in a thread unless told otherwise.
    """
    parameters = list(inspect.signature(fn).parameters.values())
    keywords = [parameters.pop()] if parameters and parameters[-1].kind is Parameter.VAR_KEYWORD else []
    told = Parameter(MESSAGE, Parameter.KEYWORD_ONLY, annotation=Message)

    @wraps(fn)
    async def handle(payload: Any, /, **others: Any) -> Any:
        message = others.pop(MESSAGE)
        return then(await collected(fn(payload, **others)), message)

    @wraps(fn)
    def handle_here(payload: Any, /, **others: Any) -> Any:
        message = others.pop(MESSAGE)
        return then(gathered(fn(payload, **others)), message)

    made: Any = handle if is_async(fn) else handle_here
    made.__signature__ = inspect.Signature([*parameters, told, *keywords])
    made.__annotations__ = {**fn.__annotations__, MESSAGE: Message}
    return made  # type: ignore[no-any-return]


def stand_in(fn: Callable[..., Any], handler: Callable[..., Any], suffix: str = "") -> Callable[..., Any]:
    """A handler with parameters of its own, under the function's name (and a ``suffix``)."""
    signature, hints = inspect.signature(handler), get_type_hints(handler)
    made: Any = wraps(fn)(handler)
    made.__signature__, made.__annotations__ = signature, hints
    made.__name__, made.__qualname__ = fn.__name__ + suffix, fn.__qualname__ + suffix
    return made  # type: ignore[no-any-return]


def keeping(fn: Callable[..., Any], call: Callable[[Any, State], Awaitable[Any]], came: Any) -> Callable[..., Any]:
    """A handler that keeps records, under the function's name: ``call(what came, state)``. ``came``: its type."""

    @wraps(fn)
    async def handle(came: Any, state: State) -> Any:
        return await call(came, state)

    made: Any = handle
    made.__annotations__ = {"came": came, "state": State}
    made.__signature__ = inspect.Signature(
        [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in made.__annotations__]
    )
    return made  # type: ignore[no-any-return]
