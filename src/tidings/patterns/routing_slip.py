"""EIP: Routing Slip. A message goes through a list of steps that it carries itself; what was done is undone on failure.

The slip is a header, so all state travels with the message: a step's result, its outgoing message and its settlement
are one transaction where the bus can (memory, SQLite, PostgreSQL, Kafka), and a process that dies loses nothing. Rules:

- A step that fails for good (attempts exhausted, ``Reject``, undecodable, its process killed again and again) leaves no
  dead letter: the compensations of the steps done run, the last step's first, and then the outcome is published.
- The step that failed is not compensated: it must leave nothing behind, or undo it itself before it raises.
- Middleware stands around all this: what it raises has the fate that it has around any handler.
- A compensation may run more than once. One that fails for good is a dead letter, and goes on when that is replayed.

Steps of which each has its compensation are what is called a saga elsewhere: there is no second helper for it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from msgspec.structs import replace

from tidings.app import App
from tidings.channels import Topic
from tidings.inject import where
from tidings.keeping import Keeper
from tidings.kernel.clock import current_clock
from tidings.kernel.codec import seal
from tidings.kernel.errors import InvalidHandler, InvalidOption, Reject, Skip, nearest, text_of, users
from tidings.kernel.handler import Middleware, One, Outgoing
from tidings.kernel.message import Message
from tidings.kernel.outcome import Backoff
from tidings.kernel.topics import TOKEN
from tidings.kernel.transport import Delivery
from tidings.middleware import Group
from tidings.router import Router

from ._pattern import describe
from ._slip import HEADER, Slip, following, slip_of, written

if TYPE_CHECKING:
    from typing_extensions import TypeForm, Unpack

    from tidings._decorators import Durable, IntoMaybe
    from tidings.channels import Meta

log = logging.getLogger("tidings")

T = TypeVar("T")

MOST_STEPS, MOST_NAMES = 64, 1024  # of a slip; characters of all its names: it must fit into a header
GIVING_UP = 1000  # attempts to pass on that a step has failed; only what kills its process takes more than one
LOST = "its process died in it, or it took too long"


class RoutingSlip(Generic[T]):
    """Named steps over one type of payload, each with a group of its own; which of them a message takes, it says::

        trip = RoutingSlip(app, "trips", Trip)


        @trip.step("hotel")
        async def book_hotel(trip: Trip) -> Trip: ...
        @trip.compensate("hotel")
        async def cancel_hotel(trip: Trip) -> None: ...


        await app.publish(trip.start(Trip(...), key="42"))

    Each started one ends once on ``completed`` or ``compensated``, topics to listen to; its correlation id is the id it
    was started with. Messages travel on ``<name>.do.<step>`` and ``<name>.undo.<step>``. ``elsewhere``: steps that
    another app has, which declares the same slip. ``backoff``: of the steps (not the app's). ``bus``: one of the app's
    further buses. Raises ``InvalidName``, ``InvalidHandler``.
    """

    def __init__(
        self,
        app: Router,
        name: str,
        type: TypeForm[T],
        /,
        *,
        elsewhere: Iterable[str] = (),
        backoff: Backoff = Backoff(),  # noqa: B008
        bus: str = "",
    ) -> None:
        self.app, self.name, self.type, self.backoff, self.bus = app, name, type, backoff, bus
        self.source = app.name if isinstance(app, App) else ""
        self.completed: Topic[T] = self._topic("completed")
        self.compensated: Topic[T] = self._topic("compensated")
        self.elsewhere = tuple(elsewhere)
        self.steps: list[str] = []
        self.undoable: set[str] = set()

    def start(self, data: T, steps: Iterable[str] | None = None, /, **meta: Unpack[Meta]) -> Message[T]:
        """The message that begins, to be published, or returned by a handler. ``steps``: their names in order; default
        those declared here, as declared.

        Raises ``InvalidOption`` for unknown steps, for too many, and for ``expires``: it would end nowhere.
        """
        chosen = tuple(self.steps if steps is None else steps)
        for step in chosen:
            if step not in self.steps and step not in self.elsewhere:
                known = [*self.steps, *self.elsewhere]
                raise InvalidOption(
                    f"{self.name!r} has no step {step!r}", mend=nearest(step, known) or f"one of {known}"
                )
        if not 0 < len(chosen) <= MOST_STEPS or len("".join(chosen)) > MOST_NAMES:
            mend = f"1 to {MOST_STEPS} steps, whose names have {MOST_NAMES} characters in all"
            raise InvalidOption(f"a slip of {len(chosen)} steps does not fit into its header", mend=mend)
        if "expires" in meta:
            raise InvalidOption("a routing slip cannot expire", mend="let a step raise Reject when it is too late")
        slip = Slip(todo=chosen)
        meta["headers"] = {**meta.get("headers", {}), HEADER: written(slip)}
        return self._topic(slip.next)(data, **meta)

    def step(self, name: str, /, **options: Unpack[Durable]) -> IntoMaybe[T, T]:
        """Declare what does a step. It returns the payload for the next step (None: the same); ``raise Skip`` leaves
        the step out, and so its compensation. Options as of ``app.on``.

        Raises ``InvalidHandler``.
        """
        backoff = options.get("backoff", self.backoff)

        def register(fn: Any) -> Any:
            self._refuse(name, name in self.steps or not TOKEN.fullmatch(name), "a step is a name of its own", fn)
            self.steps.append(name)
            # More attempts than the user's: they do not run the step, they give it up, whatever ended it before.
            allowed = replace(backoff, attempts=backoff.attempts + GIVING_UP)
            return self._on(f"do.{name}", fn, partial(self._doing, name, backoff), {**options, "backoff": allowed})

        return cast("IntoMaybe[T, T]", register)

    def compensate(self, name: str, /, **options: Unpack[Durable]) -> IntoMaybe[T, T]:
        """Declare what undoes a step that is declared above it. It gets the payload as the failed step got it, and may
        return another one for those that follow. Options as of ``app.on``.

        Raises ``InvalidHandler``.
        """

        def register(fn: Any) -> Any:
            wrong = name not in self.steps or name in self.undoable
            self._refuse(name, wrong, "it undoes a step that is declared above it, and only once", fn)
            self.undoable.add(name)
            return self._on(f"undo.{name}", fn, partial(self._undoing, name), {"backoff": self.backoff, **options})

        return cast("IntoMaybe[T, T]", register)

    def _topic(self, name: str) -> Topic[T]:
        return Topic(f"{self.name}.{name}", self.type, bus=self.bus)

    def _refuse(self, name: str, wrong: bool, rule: str, fn: Callable[..., Any]) -> None:
        if wrong or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            what, mend = f"{fn.__qualname__}() cannot be for step {name!r}", f"{rule}; it returns one payload, or None"
            raise InvalidHandler(what, mend=mend, where=where(fn))

    def _on(self, topic: str, fn: Any, layer: Callable[..., Middleware], options: dict[str, Any]) -> Any:
        # Its result is published to ``completed``, as far as it knows; the layer knows where it really goes.
        on: Any = self.app.on
        made: Any = layer()
        layers = (*options.pop("middleware", ()), made)
        described = describe(fn, "routing slip", publishes=(self._topic(">"),))
        on(self._topic(topic), to=self.completed, middleware=layers, **options)(described)
        if self.app.registrations[-1].plan.state:
            made.keeping = layer
        return fn

    def _doing(self, name: str, backoff: Backoff, keeper: Keeper | None = None) -> Middleware:
        group = Group(backoff=backoff)

        def layer(one: One) -> One:
            async def do(delivery: Delivery) -> Outgoing:
                message, slip = delivery.message, slip_of(delivery.message)
                if slip.failed or slip.todo[:1] != (name,):
                    raise Reject(f"the slip does not say {name!r}: {slip}")
                if delivery.attempt > backoff.attempts:
                    return self._passed_on(message, slip.gave_up(LOST))
                forget = _mark(keeper, delivery)
                try:
                    outgoing = await one(delivery)
                except Skip:
                    forget()
                    return self._passed_on(message, slip.skipped())
                except Exception as error:
                    if group.outcome(delivery, error) != "dead":
                        raise
                    forget()
                    told = f"{type(error).__name__}: {text_of(error)}"
                    log.warning("%s: step %r failed for good", self.name, name, exc_info=users(error))
                    return self._passed_on(message, slip.gave_up(told))
                return self._passed_on(message, slip.passed(name in self.undoable), *outgoing)

            return do

        return layer

    def _undoing(self, name: str, keeper: Keeper | None = None) -> Middleware:
        def layer(one: One) -> One:
            async def undo(delivery: Delivery) -> Outgoing:
                message, slip = delivery.message, slip_of(delivery.message)
                if slip.undo[:1] != (name,):
                    raise Reject(f"the slip does not say to undo {name!r}: {slip}")
                outgoing: Outgoing = ()
                forget = _mark(keeper, delivery)
                try:
                    outgoing = await one(delivery)
                except Skip:
                    forget()
                return self._passed_on(message, slip.undone(), *outgoing)

            return undo

        return layer

    def _passed_on(self, message: Message[Any], slip: Slip, result: Message[Any] | None = None) -> Outgoing:
        draft = replace(following(message, slip, self.name, result), bus=self.bus)
        return (seal(draft, now=current_clock().now(), source=self.source or message.source, parent=message),)


def _mark(keeper: Keeper | None, delivery: Delivery) -> Callable[[], None]:
    """What makes a run forget the records that it writes from now on: what failed for good has written nothing."""
    return keeper.state_of(delivery).savepoint() if keeper is not None else lambda: None
