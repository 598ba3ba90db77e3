"""The public face cannot grow, or shrink, by accident: a new name is added here as well, on purpose."""

from __future__ import annotations

import inspect
import tomllib
import types
from pathlib import Path

import pytest

import tidings

FACE = [
    *("App", "Client", "connect", "Router", "Topic", "Service", "Message", "Delivery", "Depends", "token", "untoken"),
    *("State", "Table", "due", "transact"),
    *("Backoff", "Breaker", "Retry", "Reject", "Defer", "Skip", "Partial"),
    *("TidingsError", "UsageError", "BusError", "BusFull", "PublishFailed", "DeliveryError"),
    *("RequestError", "RequestTimeout", "NoAnswerer"),
]


def test_names_are_exactly_these() -> None:
    assert sorted(tidings.__all__) == sorted([*FACE, "__version__"])


def test_nothing_else_is_public() -> None:
    visible = (name for name, value in vars(tidings).items() if not isinstance(value, types.ModuleType))
    assert {name for name in visible if not name.startswith("_")} == set(FACE)


@pytest.mark.parametrize("name", FACE)
def test_each_name_is_ours_and_documented(name: str) -> None:
    thing = getattr(tidings, name)
    assert thing.__module__.partition(".")[0] == "tidings"
    assert thing.__doc__, "inherited documentation says what something else does"
    assert thing.__doc__.strip()


@pytest.mark.parametrize("name", [name for name in FACE if inspect.isclass(getattr(tidings, name, None))])
def test_public_methods_say_something(name: str) -> None:
    methods = vars(getattr(tidings, name)).items()
    silent = [n for n, method in methods if not n.startswith("_") and inspect.isfunction(method) and not method.__doc__]
    assert silent == []


def test_version_is_told_once() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert tidings.__version__ == project["version"]
