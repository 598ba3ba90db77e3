"""What decorators accept, for type checkers only: nothing of this exists at run time."""

from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator
from collections.abc import Callable as Fn
from datetime import datetime
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypedDict, TypeVar, overload

from .kernel.errors import Duration
from .kernel.handler import Middleware
from .kernel.message import Message
from .kernel.outcome import Backoff, Breaker

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Async = Coroutine[Any, Any, R]
Sent = None | Message[Any] | Iterable[Message[Any]]
Sends = Sent | Awaitable[Sent] | AsyncIterator[Message[Any]]
S = TypeVar("S", bound=Sends)
F = TypeVar("F", bound=Fn[..., Sends])

class Live(TypedDict, total=False):
    concurrency: int
    timeout: Duration
    run: Literal["loop", "thread", "process"]
    bus: str
    middleware: Iterable[Middleware]

class Durable(Live, total=False):
    group: str
    start: str | datetime
    ordered: bool
    backoff: Backoff
    breaker: Breaker | None

class Answer(TypedDict, total=False):
    concurrency: int
    timeout: Duration
    run: Literal["loop", "thread", "process"]
    bus: str
    middleware: Iterable[Middleware]

class On(Generic[T]):
    """A handler of one payload, or of its message."""

    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], S], /) -> Fn[Concatenate[T, P], S]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[Message[T], P], S], /) -> Fn[Concatenate[Message[T], P], S]: ...

class OnBatch(Generic[T]):
    """A handler of a list of payloads, or of messages."""

    @overload
    def __call__(self, fn: Fn[Concatenate[list[T], P], S], /) -> Fn[Concatenate[list[T], P], S]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[list[Message[T]], P], S], /) -> Fn[Concatenate[list[Message[T]], P], S]: ...

class Into(Generic[T, R]):
    """An answerer: one reply, or a stream of replies."""

    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Iterator[R]], /) -> Fn[Concatenate[T, P], Iterator[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Async[R]], /) -> Fn[Concatenate[T, P], Async[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], AsyncIterator[R]], /) -> Fn[Concatenate[T, P], AsyncIterator[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], R], /) -> Fn[Concatenate[T, P], R]: ...

class IntoMaybe(Generic[T, R]):
    """A handler with ``to=``: it returns payloads of that topic; None sends nothing."""

    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Async[R]], /) -> Fn[Concatenate[T, P], Async[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Async[R | None]], /) -> Fn[Concatenate[T, P], Async[R | None]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], AsyncIterator[R]], /) -> Fn[Concatenate[T, P], AsyncIterator[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], R], /) -> Fn[Concatenate[T, P], R]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], R | None], /) -> Fn[Concatenate[T, P], R | None]: ...

class Same(Protocol):
    """Any handler that sends messages or nothing."""

    def __call__(self, fn: F, /) -> F: ...
