"""EIP: Process Manager. What comes next is decided from what has happened so far, for each process on its own.

    orders = ProcessManager(app, "orders", Shipping)

    @orders.on(placed, by=lambda order: order.id, begins=True)
    async def begin(order: Order, process: Process[Shipping]) -> Message[Charge]:
        process.state = Shipping(order.items)
        process.timeout("15m")
        return charges(Charge(order.id, order.total), key=order.id)

    @orders.timeout
    async def give_up(process: Process[Shipping]) -> Message[str]:
        process.end()
        return cancelled(process.id)

State, timeout, what the handler returns and the settlement of the event are one transaction (``State``). Events of one
process that are handled at once, here or elsewhere, take turns: who finds the state changed runs again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from tidings.channels import Topic
from tidings.inject import where
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Defer, Duration, InvalidHandler, InvalidOption, Reject, Skip, WrongReturn
from tidings.kernel.handler import collected
from tidings.kernel.message import Message, seconds
from tidings.router import Router, is_async
from tidings.state import State, Table
from tidings.timers import due

from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import TypeForm, Unpack

    from tidings._decorators import Durable

    from ._processes import Handles, TimesOut

T = TypeVar("T")
S = TypeVar("S")

STATE, MESSAGE = "_tidings_state", "_tidings_message"
AGAIN = 0.5  # seconds until an event without a process looks for it again


class Process(Generic[S]):
    """One process, while a handler has it. ``state``: to be replaced, or changed in place; kept when it returns."""

    __slots__ = ("due", "ended", "id", "state")

    def __init__(self, id: str, state: S) -> None:
        self.id, self.state, self.ended = id, state, False
        self.due: float | None = None  # seconds from now; 0: none any more

    def timeout(self, after: Duration | None) -> None:
        """Call the manager's timeout handler after so long, instead of when was said before; None: not at all."""
        self.due = 0.0 if after is None else max(seconds(after, "after"), 0.001)

    def end(self) -> None:
        """The process is over when the handler returns: nothing of it is kept but that it has been."""
        self.ended = True


class ProcessManager(Generic[S]):
    """Processes of one kind: ``name`` calls their table, ``type`` is what their state is.

    ``new``: makes the state of a process that begins (default: ``type()``). ``patience``: how long an event waits for
    its process to be begun, by another event that is late, before it is a dead letter. ``remember``: how long an event
    of a process that has ended is known to be late, and skipped; longer than any event takes.
    Raises ``InvalidName``, ``InvalidOption``.
    """

    def __init__(
        self,
        app: Router,
        name: str,
        type: TypeForm[S],
        *,
        new: Callable[[], S] | None = None,
        patience: Duration = 60.0,
        remember: Duration = "7d",
    ) -> None:
        self.app, self.name, self.new = app, name, cast("Callable[[], S]", new or type)
        self.patience, self.remember = seconds(patience, "patience"), seconds(remember, "remember")
        self.table: Table[S] = Table(name, type)
        self.timeouts: Table[float] = Table(f"{name}.timeouts", float)
        self.ended: Table[float] = Table(f"{name}.ended", float, expires=True)
        self.timed = False
        self.bus: str | None = None  # of the first topic

    def on(
        self, topic: Topic[T], /, *, by: Callable[[T], str], begins: bool = False, **options: Unpack[Durable]
    ) -> Handles[T, S]:
        """Handle the events of a topic: an async function of the payload (or ``Message``) and its ``Process``.

        ``by``: the id of an event's process. ``begins``: it may be the first of its process. Other parameters, what it
        returns, and ``options`` are as in ``app.on``. Raises ``InvalidOption``, ``InvalidHandler``.
        """
        if not callable(by):
            raise InvalidOption(f"by cannot be {by!r}", mend="a function of the payload: by=lambda order: order.id")
        if options.get("batch"):
            raise InvalidOption("a process manager handles one event at a time", mend="drop batch=")
        if begins:
            self._check_new()
        self.bus = topic.bus if self.bus is None else self.bus

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            handler = describe(self._handler(fn, by, begins), "process manager")
            cast(Any, self.app).on(topic, **options)(handler)
            return fn

        return cast("Handles[T, S]", register)

    def _check_new(self) -> None:
        try:
            self.new()
        except Exception as error:
            mend = "give every field a default, or new=lambda: State(...)"
            raise InvalidOption(f"{self.name}: no new state can be made", why=repr(error), mend=mend) from None

    @property
    def timeout(self) -> TimesOut[S]:
        """A decorator: call an async function of the ``Process`` when its timeout has passed; after ``on``."""

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            if self.timed or not is_async(fn):
                what = f"{fn.__qualname__}() cannot handle timeouts of {self.name!r}"
                raise InvalidHandler(what, mend="one function, written with async def", where=where(fn))
            self.timed = True

            @wraps(fn)
            async def fired(id: str, at: float, state: State) -> Any:
                value = await state.get(self.table, id)
                if value is None:
                    return None
                process = Process(id, value)
                result = await collected(fn(process))
                self._keep(process, state)
                return result

            due(self.app, self.timeouts, bus=self.bus or "")(describe(fired, "process manager"))
            return fn

        return cast("TimesOut[S]", register)

    def _handler(self, fn: Callable[..., Any], by: Callable[[Any], str], begins: bool) -> Callable[..., Any]:
        """A handler of the event, its other parameters, and the state of the run."""
        parameters = list(inspect.signature(fn).parameters.values())
        if not is_async(fn) or len(parameters) < 2:
            what = f"{fn.__qualname__}() is no handler of {self.name!r}"
            raise InvalidHandler(what, mend="async def f(event: Event, process: Process[State])", where=where(fn))

        @wraps(fn)
        async def handle(event: Any, /, **others: Any) -> Any:
            state, message = others.pop(STATE), others.pop(MESSAGE)
            process = await self._of(by(message.data), state, message, begins)
            result = await collected(fn(event, process, **others))
            self._keep(process, state)
            return result

        made: Any = handle
        told = [Parameter(n, Parameter.KEYWORD_ONLY, annotation=a) for n, a in ((STATE, State), (MESSAGE, Message))]
        made.__signature__ = inspect.Signature([parameters[0], *parameters[2:], *told])
        made.__annotations__ = {**fn.__annotations__, STATE: State, MESSAGE: Message}
        return made  # type: ignore[no-any-return]

    async def _of(self, id: str, state: State, message: Message[Any], begins: bool) -> Process[S]:
        """The process of an event; raises what becomes of an event that has none."""
        if not isinstance(id, str):
            raise WrongReturn(f"by= of {self.name!r} returned {id!r}", mend="return the id of a process, a str")
        value = await state.get(self.table, id)
        if value is not None:
            return Process(id, value)
        if await state.get(self.ended, id) is not None:
            raise Skip(f"process {id!r} of {self.name!r} has ended")
        if begins:
            state.delete(self.ended, id)  # it must still not be there when this is committed
            return Process(id, self.new())
        if current_clock().now() - message.time < self.patience:
            raise Defer(AGAIN, f"process {id!r} of {self.name!r} has not begun")
        raise Reject(f"no process {id!r} of {self.name!r} has begun")

    def _keep(self, process: Process[S], state: State) -> None:
        """Write what became of a process: its state always, so that two runs that read it take turns."""
        now, id = current_clock().now(), process.id
        if process.ended:
            state.delete(self.table, id)
            state.delete(self.timeouts, id)
            state.put(self.ended, id, now, due=now + self.remember)
            return
        state.put(self.table, id, process.state)
        if process.due:
            if not self.timed:
                raise InvalidOption(f"{self.name!r} has no handler of timeouts", mend=f"@{self.name}.timeout")
            state.put(self.timeouts, id, now + process.due, due=now + process.due)
        elif process.due == 0.0:
            state.delete(self.timeouts, id)
