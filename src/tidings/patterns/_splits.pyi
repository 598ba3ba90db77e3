"""What ``splitter`` and a normalizer accept, for type checkers only: nothing of this exists at run time."""

from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from collections.abc import Callable as Fn
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from tidings.kernel.message import Message

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")
P = ParamSpec("P")
Async = Coroutine[Any, Any, R]

class Splits(Generic[T, R]):
    """A function of a payload, or of its message, to parts."""

    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], list[R]], /) -> Fn[Concatenate[T, P], list[R]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Async[list[R]]], /) -> Fn[Concatenate[T, P], Async[list[R]]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], AsyncIterator[R]], /) -> Fn[Concatenate[T, P], AsyncIterator[R]]: ...
    @overload
    def __call__(
        self, fn: Fn[Concatenate[Message[T], P], AsyncIterator[R]], /
    ) -> Fn[Concatenate[Message[T], P], AsyncIterator[R]]: ...
    @overload
    def __call__(
        self, fn: Fn[Concatenate[T, P], Async[Iterable[R]]], /
    ) -> Fn[Concatenate[T, P], Async[Iterable[R]]]: ...
    @overload
    def __call__(
        self, fn: Fn[Concatenate[Message[T], P], Async[Iterable[R]]], /
    ) -> Fn[Concatenate[Message[T], P], Async[Iterable[R]]]: ...
    @overload
    def __call__(self, fn: Fn[Concatenate[T, P], Iterable[R]], /) -> Fn[Concatenate[T, P], Iterable[R]]: ...
    @overload
    def __call__(
        self, fn: Fn[Concatenate[Message[T], P], Iterable[R]], /
    ) -> Fn[Concatenate[Message[T], P], Iterable[R]]: ...

class Translates(Generic[R]):
    """A function of a foreign payload, or of its message, to canonical ones."""

    @overload
    def __call__(self, fn: Fn[[S], Iterator[R]], /) -> Fn[[S], Iterator[R]]: ...
    @overload
    def __call__(self, fn: Fn[[S], AsyncIterator[R]], /) -> Fn[[S], AsyncIterator[R]]: ...
    @overload
    def __call__(self, fn: Fn[[S], Async[R | None]], /) -> Fn[[S], Async[R | None]]: ...
    @overload
    def __call__(self, fn: Fn[[S], R | None], /) -> Fn[[S], R | None]: ...
