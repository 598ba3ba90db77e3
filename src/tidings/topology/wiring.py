"""What an app's code shows of its wiring: the topics and services that its handlers name."""

from __future__ import annotations

import dis
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tidings.app import App
from tidings.channels import Service, Topic
from tidings.kernel.errors import LIBRARY, PACKAGE
from tidings.patterns._pattern import Pattern, described
from tidings.router import Registration
from tidings.timers import Timer

Channel = Topic[Any] | Service[Any, Any]


def patterns(r: Registration) -> list[Pattern]:
    """What a handler, and the middleware around it, say that they are."""
    said = (r.fn, called(r), *r.middleware)
    return _distinct([pattern for each in said if (pattern := described(each)) is not None])


def called(r: Registration) -> Any:
    """The function of a registration; of one that ``due`` has made, what is called for a record."""
    timers = (value for value in _enclosed(r.fn).values() if isinstance(value, Timer))
    return next((timer.fn for timer in timers), r.fn)


def sent(r: Registration) -> list[Topic[Any]]:
    """The topics a handler sends to: that of ``to=``, those that its patterns say, and those its code names."""
    said = [r.to] if r.to is not None else []
    said += [topic for pattern in patterns(r) for topic in pattern.publishes]
    return _distinct([*said, *(channel for channel in _named(r) if isinstance(channel, Topic))])


def asked(r: Registration) -> list[Service[Any, Any]]:
    """The services that a handler's patterns say it asks, and those its code names."""
    said = [service for pattern in patterns(r) for service in pattern.asks]
    return _distinct([*said, *(channel for channel in _named(r) if isinstance(channel, Service))])


def defined(app: App) -> list[Topic[Any]]:
    """The topics of the modules that have the app's handlers, whether or not a handler names them."""
    modules = dict.fromkeys(sys.modules.get(r.fn.__module__) for r in app.registrations)
    values = [value for module in modules if module for value in vars(module).values()]
    return [value for value in _distinct(values) if isinstance(value, Topic)]


def overlap(pattern: str, other: str) -> bool:
    """Whether a topic may match both patterns (captures already turned into ``*``)."""
    ours, theirs = pattern.split("."), other.split(".")
    if ours[0].startswith("_") != theirs[0].startswith("_"):
        return False  # reserved topics, which no wildcard stands for
    for mine, its in zip(ours, theirs, strict=False):
        if ">" in (mine, its):
            return True
        if mine != its and "*" not in (mine, its):
            return False
    return len(ours) == len(theirs)


def _named(r: Registration) -> list[Channel]:
    """Through the functions of the user's own that it calls, and those it depends on.

    The code of a pattern that says what it is names nothing: it is only a way to the functions that it was given.
    """
    package = _package(called(r))
    waiting: list[Any] = [called(r), *(dependency.call for dependency in r.plan.dependencies)]
    seen: set[FunctionType] = set()
    found: list[Channel] = []
    while waiting:
        function = inspect.unwrap(waiting.pop(0))
        function = getattr(function, "__func__", function)  # of a method
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        pattern = _of_a_pattern(function)
        if pattern:
            waiting += _enclosed(function).values()
        if pattern and patterns(r):
            continue
        for value in _loaded(function.__code__, function.__globals__, _enclosed(function)):
            found += _channels(value)
            if isinstance(value, FunctionType) and _own(value, package):
                waiting.append(value)
    return _distinct(found)


def _channels(value: Any) -> Iterator[Channel]:
    """A value that is one, or those in a list or dict of them."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else (value,)
    return (each for each in inside if isinstance(each, Topic | Service))


def _own(function: FunctionType, package: str) -> bool:
    """Whether a function belongs to the app: to the handler's package, or to no installed one."""
    file = function.__code__.co_filename
    return _package(function) == package or not (file.startswith((PACKAGE, LIBRARY, "<")) or "site-packages" in file)


def _of_a_pattern(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith(f"{PACKAGE}patterns{os.sep}")


def _package(function: Any) -> str:
    return (function.__module__ or "").partition(".")[0]  # that of exec has no module


def _loaded(code: CodeType, names: Mapping[str, Any], nonlocals: Mapping[str, Any]) -> Iterator[Any]:
    """The values of the global and enclosing names that code loads, and of attributes of modules and classes."""
    value: Any = None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = names.get(name)
        elif instruction.opname == "LOAD_DEREF":
            value = nonlocals.get(name)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType | type):
            value = getattr(value, name, None)
        else:
            value = None
            continue
        yield value
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _loaded(constant, names, nonlocals)


def _enclosed(function: Any) -> dict[str, Any]:
    """The values of a nested function's enclosing names, as far as they have one already."""
    values = dict[str, Any]()
    if not isinstance(function, FunctionType):
        return values
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            values[name] = cell.cell_contents
    return values


def _distinct(values: list[Any]) -> list[Any]:
    return list({id(value): value for value in values}.values())
