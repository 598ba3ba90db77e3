"""What a handler's parameters are, found once at registration; and how it is called with them.

The first parameter is the payload, or ``Message[T]``. The others are found by annotation (``Message``, ``Delivery``,
the app's own objects, ``Annotated[T, Depends(f)]``), then by name (a capture of the topic); one with a default is left
alone.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Struct

from .kernel.codec import Decode, decoder
from .kernel.errors import InvalidHandler, nearest
from .kernel.handler import Emit, Origin, Outgoing, collected, gathered
from .kernel.message import Message, opened
from .kernel.topics import captures
from .kernel.transport import Delivery
from .state import State

Function = Callable[..., Any]
Call = Callable[[Delivery], Outgoing]
Values = dict[Function, Any]
Source = Callable[[Delivery, Any, Values], Any]


class Depends:
    """``Annotated[T, Depends(f)]``: the parameter is what ``f`` returns or yields (then cleaned up after).

    ``scope``: once per ``"message"`` or once per ``"app"`` opened. ``f`` may be plain or async, and take parameters of
    the same kinds itself.
    """

    __slots__ = ("f", "scope")

    def __init__(self, f: Function, scope: Literal["app", "message"] = "message") -> None:
        self.f, self.scope = f, scope


class Dependency(Struct, frozen=True):
    """One function to call before the handler, and what to call it with."""

    f: Function  # as written: the key of its value
    call: Function  # as overridden
    scope: str
    parameters: tuple[tuple[str, Source], ...]

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call) or inspect.isasyncgenfunction(self.call)


class Plan(Struct, frozen=True):
    """How to call a handler: its payload's type and form, its other parameters, its dependencies in order."""

    type: Any
    takes: Literal["data", "message", "nothing"]
    parameters: tuple[tuple[str, Source], ...]
    dependencies: tuple[Dependency, ...]
    state: str = ""  # the parameter that is the state of the run
    keeps: bool = False  # it has one, or a dependency of it

    @property
    def plain(self) -> bool:
        """Takes the payload and nothing else."""
        return self.takes == "data" and not self.parameters

    def call(self, fn: Function, delivery: Delivery, data: Any, values: Values) -> Any:
        """Call the function with what it takes."""
        others = {name: source(delivery, data, values) for name, source in self.parameters}
        if self.takes == "nothing":
            return fn(**others)
        return fn(data if self.takes == "data" else opened(delivery.message, data), **others)


def name_of(fn: Function) -> str:
    """What to call a function, a partial or a callable object."""
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def where(fn: Function) -> str:
    """``file:line`` of a function."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def plan(
    fn: Function,
    *,
    template: str = "",
    type: Any = Any,
    batch: bool = False,
    payload: bool = True,
    provided: Mapping[type, Any] | None = None,
    overrides: Mapping[Function, Function] | None = None,
) -> Plan:
    """Read a function's signature; raises ``InvalidHandler`` with its file:line."""
    finder = _Finder(fn, captures(template), provided or {}, overrides or {})
    parameters = list(inspect.signature(fn).parameters.values())
    hints = finder.hints(fn)
    takes: Literal["data", "message", "nothing"] = "nothing"
    if payload:
        if not parameters or parameters[0].kind in (parameters[0].VAR_KEYWORD, parameters[0].KEYWORD_ONLY):
            raise InvalidHandler(f"{name_of(fn)}() takes no payload", mend="give it a first parameter", where=where(fn))
        first = hints.get(parameters.pop(0).name, Any)
        if batch:
            first = _item(fn, first)
        if is_message(first):
            takes, first = "message", (get_args(first) or (Any,))[0]
        else:
            takes = "data"
        if type is Any:
            type = first
    sources = tuple(finder.sources(fn, parameters, hints))
    if batch and [name for name, _ in sources] not in ([], [finder.state]):
        raise InvalidHandler(
            f"{name_of(fn)}() takes a batch and {sources[0][0]!r}",
            why="only the list, and a state, have a meaning for a whole batch",
            mend="take list[Message[T]] and read the messages",
            where=where(fn),
        )
    return Plan(type, takes, sources, tuple(finder.found.values()), finder.state, finder.keeps)


def is_message(annotation: Any) -> bool:
    return annotation is Message or get_origin(annotation) is Message


def _item(fn: Function, annotation: Any) -> Any:
    if annotation is Any or annotation is list:
        return Any
    if get_origin(annotation) not in (list, Sequence):
        raise InvalidHandler(
            f"{name_of(fn)}() takes {annotation!r}",
            why="it is called with batches",
            mend="take list[T]",
            where=where(fn),
        )
    return get_args(annotation)[0]


class _Finder:
    """Finds the source of each parameter of one handler, and of its dependencies', callees first."""

    def __init__(
        self,
        fn: Function,
        names: Mapping[str, int],
        provided: Mapping[type, Any],
        overrides: Mapping[Function, Function],
    ) -> None:
        self.fn, self.names, self.provided, self.overrides = fn, names, provided, overrides
        self.found: dict[Function, Dependency] = {}
        self.pending: list[Function] = []
        self.scope = "message"  # of what is being looked into
        self.state, self.keeps = "", False

    def hints(self, fn: Function) -> dict[str, Any]:
        target = fn if inspect.isroutine(fn) or inspect.isclass(fn) else type(fn).__call__
        target = target.__init__ if inspect.isclass(target) else target
        try:
            return get_type_hints(target, localns=_locals(target), include_extras=True)
        except Exception as error:
            raise InvalidHandler(
                f"an annotation of {name_of(fn)}() cannot be resolved",
                why=str(error),
                mend="define or import the name before the handler, not only under TYPE_CHECKING",
                where=where(fn),
            ) from None

    def sources(
        self, fn: Function, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
    ) -> list[tuple[str, Source]]:
        return [
            (parameter.name, source)
            for parameter in parameters
            if (source := self._source(fn, parameter, hints.get(parameter.name, Any))) is not None
        ]

    def _source(self, fn: Function, parameter: inspect.Parameter, hint: Any) -> Source | None:
        if get_origin(hint) is Annotated:
            for mark in get_args(hint)[1:]:
                if isinstance(mark, Depends):
                    return self._depends(mark)
            hint = get_args(hint)[0]
        for known, value in self.provided.items():
            if isinstance(hint, type) and issubclass(known, hint) and hint is not object:
                return lambda delivery, data, values: value
        source = self._of_message(parameter.name, hint)
        optional = parameter.default is not parameter.empty
        if source is not None and self.scope == "message" and parameter.kind is not parameter.POSITIONAL_ONLY:
            return source
        if optional or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return None
        why = "parameters after the payload are Message, Delivery, State, App, a capture, or Annotated[T, Depends(f)]"
        if source is not None:
            why = "this is called once per app, not per message" if self.scope == "app" else "it is positional-only"
        raise InvalidHandler(
            f"{name_of(fn)}() has a parameter {parameter.name!r} that nothing fills",
            why=why,
            mend=nearest(parameter.name, self.names) or "annotate it, give it a default, or capture it in the topic",
            where=where(fn),
        )

    def _of_message(self, name: str, hint: Any) -> Source | None:
        if is_message(hint):
            return lambda delivery, data, values: opened(delivery.message, data)
        if hint is Delivery:
            return lambda delivery, data, values: delivery
        if hint is State:
            self.keeps, self.state = True, self.state if self.pending else name
            return lambda delivery, data, values: values[State](delivery)
        if name in self.names:
            index = self.names[name]
            return lambda delivery, data, values: delivery.message.topic.split(".")[index]
        return None

    def _depends(self, mark: Depends) -> Source:
        f, outer = mark.f, self.scope
        if f in self.pending or (outer == "app" and mark.scope == "message"):
            what = "itself" if f in self.pending else f"{name_of(f)}(), which is called per message"
            raise InvalidHandler(f"{name_of(self.pending[-1])}() depends on {what}", where=where(self.pending[-1]))
        if f not in self.found:
            self.pending.append(f)
            self.scope = mark.scope
            call = self.overrides.get(f, f)
            parameters = self.sources(call, list(inspect.signature(call).parameters.values()), self.hints(call))
            self.found[f] = Dependency(f, call, mark.scope, tuple(parameters))
            self.pending.pop()
            self.scope = outer
        return lambda delivery, data, values: values[f]


def _locals(fn: Function) -> dict[str, Any]:
    """Names a nested function's annotations may mean: those of the frames that are defining it."""
    names: dict[str, Any] = {}
    if "<locals>" in getattr(fn, "__qualname__", ""):
        frame: Any = sys._getframe(1)
        while frame is not None:
            names = {**frame.f_locals, **names} if frame.f_code.co_filename == where(fn).rpartition(":")[0] else names
            frame = frame.f_back
    return names


async def provide(
    dependencies: Sequence[Dependency], delivery: Any, data: Any, values: Values, stack: AsyncExitStack
) -> None:
    """Call dependencies in order, adding to ``values``; clean-ups go onto ``stack``."""
    for dependency in dependencies:
        if dependency.f in values:
            continue
        arguments = {name: source(delivery, data, values) for name, source in dependency.parameters}
        if inspect.isasyncgenfunction(dependency.call):
            value = await stack.enter_async_context(asynccontextmanager(dependency.call)(**arguments))
        elif inspect.isgeneratorfunction(dependency.call):
            value = stack.enter_context(contextmanager(dependency.call)(**arguments))
        else:
            value = dependency.call(**arguments)
            if inspect.isawaitable(value):
                value = await value
        values[dependency.f] = value


def provide_here(
    dependencies: Sequence[Dependency], delivery: Any, data: Any, values: Values, stack: ExitStack
) -> None:
    """``provide`` without an event loop, for handlers that run in a thread or a process."""
    for dependency in dependencies:
        if dependency.f not in values:
            arguments = {name: source(delivery, data, values) for name, source in dependency.parameters}
            generator = inspect.isgeneratorfunction(dependency.call)
            values[dependency.f] = (
                stack.enter_context(contextmanager(dependency.call)(**arguments))
                if generator
                else dependency.call(**arguments)
            )


def invoker(fn: Function, plan: Plan, decode: Decode, app_values: Values) -> Callable[[Delivery], Awaitable[Any]]:
    """The function's own result for a delivery: awaited, what it yields gathered, dependencies cleaned up."""

    async def invoke(delivery: Delivery) -> Any:
        data, values = decode(delivery.message.body, delivery.message.content_type), dict(app_values)
        async with AsyncExitStack() as stack:
            try:
                await provide(plan.dependencies, delivery, data, values, stack)
                return await collected(plan.call(fn, delivery, data, values))
            except Exception as error:
                failure = error
                raise
        raise failure  # a dependency swallowed it

    return invoke


def caller(fn: Function, plan: Plan, decode: Decode, emit: Emit, app_values: Values) -> Call:
    """A plain function as a call from delivery to outgoing messages, for threads and processes."""
    if plan.plain:
        return lambda d: emit(gathered(fn(decode(d.message.body, d.message.content_type))), d.message)

    def call(delivery: Delivery) -> Any:
        data, values = decode(delivery.message.body, delivery.message.content_type), dict(app_values)
        with ExitStack() as stack:
            try:
                provide_here(plan.dependencies, delivery, data, values, stack)
                return emit(gathered(plan.call(fn, delivery, data, values)), delivery.message)
            except Exception as error:
                failure = error
                raise
        raise failure  # a dependency swallowed it

    return call


class Recipe(Struct, frozen=True, kw_only=True):
    """Everything a child process needs to call a handler; pickled, the function goes by ``module:qualname``."""

    fn: Function
    template: str
    type: Any
    lax: bool
    origin: Origin
    emitter: Callable[[Origin, Callable[[], float]], Emit]
    overrides: Mapping[Function, Function]

    def call(self) -> Call:
        """The handler as a call, made anew from its function."""
        found = plan(self.fn, template=self.template, type=self.type, overrides=self.overrides)
        return caller(self.fn, found, decoder(found.type, lax=self.lax), self.emitter(self.origin, time.time), {})
