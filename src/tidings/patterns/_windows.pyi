"""What ``windowed`` accepts, for type checkers only: nothing of this exists at run time."""

from collections.abc import Callable as Fn
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar, overload

from tidings.kernel.errors import Duration
from tidings.kernel.outcome import Backoff, Breaker

from ._windowing import Window

A = TypeVar("A")
R = TypeVar("R")

class Passed(TypedDict, Generic[A], total=False):
    merge: Fn[[A, A], A]
    lateness: Duration
    late: Literal["drop", "dead"]
    watermark: Literal["group", "key"]
    idle: Duration
    group: str
    ordered: bool
    start: str | datetime
    backoff: Backoff
    breaker: Breaker | None

class Closing(Generic[A, R]):
    """A function of a total and its window to what is published."""

    @overload
    def __call__(self, fn: Fn[[A, Window], Coroutine[Any, Any, R]], /) -> Fn[[A, Window], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, fn: Fn[[A, Window], Coroutine[Any, Any, R | None]], /
    ) -> Fn[[A, Window], Coroutine[Any, Any, R | None]]: ...
    @overload
    def __call__(self, fn: Fn[[A, Window], R], /) -> Fn[[A, Window], R]: ...
    @overload
    def __call__(self, fn: Fn[[A, Window], R | None], /) -> Fn[[A, Window], R | None]: ...
