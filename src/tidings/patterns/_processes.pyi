"""What a process manager's decorators accept, for type checkers only: nothing of this exists at run time."""

from collections.abc import Callable as Fn
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

from tidings._decorators import Sends
from tidings.kernel.message import Message

from .process_manager import Process

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R", bound=Sends)

class Handles(Generic[T, S]):
    """A handler of an event, or of its message, and of its process."""

    @overload
    def __call__(self, fn: Fn[Concatenate[T, Process[S], P], R], /) -> Fn[Concatenate[T, Process[S], P], R]: ...
    @overload
    def __call__(
        self, fn: Fn[Concatenate[Message[T], Process[S], P], R], /
    ) -> Fn[Concatenate[Message[T], Process[S], P], R]: ...

class TimesOut(Generic[S]):
    """A handler of a process alone."""

    def __call__(self, fn: Fn[[Process[S]], R], /) -> Fn[[Process[S]], R]: ...
