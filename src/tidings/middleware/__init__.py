"""Observing an app from outside: traces, metrics and logs, each a middleware in one file. Off unless switched on.

An *observer* is a middleware that may be told which handler it is around: ``instrument`` tells it, for all handlers of
an app. Given to ``App(middleware=...)`` or to one handler it works too, but knows no group, and so not what follows a
failure.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from tidings.kernel.handler import Many, One
from tidings.kernel.outcome import Backoff, Dead, Kind, classify, decide
from tidings.kernel.topics import DEAD
from tidings.kernel.transport import Ack, Delivery, Release

if TYPE_CHECKING:
    from tidings.app import App
    from tidings.router import Registration

__all__ = ["Group", "Observed", "Observer", "instrument"]

UNKNOWN = Backoff()


class Group(Struct, frozen=True):
    """What an observer is told of its handler. ``template``: what it listens to, as declared.

    ``backoff=None``: not known. ``once``: nothing is tried again, and there are no dead letters.
    """

    name: str = ""
    template: str = ""
    backoff: Backoff | None = None
    once: bool = False

    def outcome(self, delivery: Delivery, error: BaseException) -> str:
        """What follows an exception: ``skipped``, ``deferred``, ``retry``, ``dead``, ``dropped`` (nothing is tried
        again), ``cancelled`` (its deadline, or the end of the app), or ``failed`` where the policy is not known.

        As the kernel decides while the breaker is closed; while it is open, a failure is given back uncounted.
        """
        if isinstance(error, asyncio.CancelledError):
            return "cancelled"
        if self.backoff is None and classify(error, UNKNOWN) is Kind.FAILED:
            return "failed"
        try:
            fate = decide(error, delivery, self.backoff or UNKNOWN, broken=False, room=False, now=time.time())
        except Exception:  # raise Retry("soon")
            fate = Dead("failed")
        if isinstance(fate, Ack):
            return "skipped"
        if self.once or (isinstance(fate, Dead) and (delivery.message.address or "").startswith(DEAD)):
            return "dropped"
        return "deferred" if isinstance(fate, Release) else "dead" if isinstance(fate, Dead) else "retry"


class Observed(Protocol):
    """A middleware for any handler, of batches too."""

    def __call__(self, one: One) -> One: ...
    def many(self, many: Many) -> Many: ...


class Observer(Observed, Protocol):
    """A middleware that may be told its handler: ``of``. ``attach``: it is about to observe this app."""

    def of(self, group: Group) -> Observed: ...
    def attach(self, app: Any) -> None: ...


def instrument(app: App, *observers: Observer) -> None:
    """Put observers around all handlers of an app that is not open yet, those declared later too; the first outermost.

    They stand inside the app's own middleware and around each handler's own.
    """
    from tidings.assembly import group_of

    def observed(r: Registration) -> Registration:
        once = r.live or r.role == "answer"
        group = Group(
            group_of(r, app.name), r.template, Backoff(attempts=1) if once else r.backoff or app.backoff, once
        )
        return replace(r, middleware=(*(observer.of(group) for observer in observers), *r.middleware))

    add = app.add
    app.registrations[:] = map(observed, app.registrations)
    vars(app)["add"] = lambda registration: add(observed(registration))
    for observer in observers:
        observer.attach(app)
