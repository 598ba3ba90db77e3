"""What ``aggregator`` and its neighbours accept, for type checkers only: nothing of this exists at run time."""

from collections.abc import Callable as Fn
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar, overload

from tidings.kernel.errors import Duration
from tidings.kernel.outcome import Backoff, Breaker

A = TypeVar("A")
R = TypeVar("R")

class Rules(TypedDict, total=False):
    size: int
    timeout: Duration
    idle: Duration
    partial: Literal["publish", "drop", "dead"]
    late: Literal["new", "drop", "dead"]
    remember: Duration
    group: str
    ordered: bool
    start: str | datetime
    backoff: Backoff
    breaker: Breaker | None

class Answers(TypedDict, total=False):
    size: int
    timeout: Duration
    partial: Literal["publish", "drop", "dead"]
    late: Literal["drop", "dead"]
    group: str
    start: str | datetime
    backoff: Backoff
    breaker: Breaker | None

class Gaps(TypedDict, total=False):
    start: int
    capacity: int
    gap: Duration
    forget: Duration
    missing: Literal["skip", "dead"]
    late: Literal["drop", "dead"]
    group: str
    backoff: Backoff
    breaker: Breaker | None

class Whole(Generic[A, R]):
    """A function of a list of payloads, or of a total, to what is published."""

    @overload
    def __call__(self, fn: Fn[[A], Coroutine[Any, Any, R]], /) -> Fn[[A], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Fn[[A], Coroutine[Any, Any, R | None]], /) -> Fn[[A], Coroutine[Any, Any, R | None]]: ...
    @overload
    def __call__(self, fn: Fn[[A], R], /) -> Fn[[A], R]: ...
    @overload
    def __call__(self, fn: Fn[[A], R | None], /) -> Fn[[A], R | None]: ...
