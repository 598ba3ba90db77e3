"""What a pattern says of the handler or middleware it is, so that ``tidings topology`` shows it as what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from msgspec import Struct

from tidings.channels import Service, Topic

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__tidings_pattern__"


class Pattern(Struct, frozen=True):
    """A pattern by its name in the book, in lower case, and where its handler sends and asks.

    ``publishes`` and ``asks``: what is known at registration. A topic with captures or wildcards will do.
    """

    name: str
    publishes: tuple[Topic[Any], ...] = ()
    asks: tuple[Service[Any, Any], ...] = ()


def describe(fn: F, name: str, *, publishes: Iterable[Topic[Any]] = (), asks: Iterable[Service[Any, Any]] = ()) -> F:
    """Say that a handler or a middleware is a pattern: of what is given to ``app.on``, after ``functools.wraps``.

    ``name`` as in the book, in lower case: ``"splitter"``. Returns ``fn``, with the attribute that topology reads.
    """
    setattr(fn, MARK, Pattern(name, tuple(publishes), tuple(asks)))
    return fn


def described(fn: Callable[..., Any]) -> Pattern | None:
    """What a pattern said of its handler or middleware; ``None`` for a plain one."""
    found = getattr(fn, MARK, None)
    return found if isinstance(found, Pattern) else None
