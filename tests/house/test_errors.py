"""The error tree: stable codes, one printed shape, and safe passage between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from tidings.kernel import errors
from tidings.kernel.errors import Defer, Partial, Reject, Retry, Skip, TidingsError

TREE = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, TidingsError)]
SIGNALS = [Retry("5m", "busy"), Retry(), Reject("no such order"), Defer("5m", "closed"), Defer(3), Skip("seen")]
PASSAGES = [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]

passage = pytest.mark.parametrize("pass_on", PASSAGES, ids=["copy", "deepcopy", "pickle"])
each_class = pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)


def example(cls: type[TidingsError]) -> TidingsError:
    """An error with everything said that its constructor lets one say."""
    texts = {"why": "the reason", "mend": "the cure", "where": "shop.py:7"}
    said: dict[str, Any] = {}
    for index, name in enumerate(inspect.signature(cls).parameters):
        if index:
            said[name] = texts.get(name, (index,))
    return cls("what happened", **said)


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in TREE]
    assert sorted(set(codes)) == sorted(codes)


@each_class
def test_code_and_docstring(cls: type[TidingsError]) -> None:
    assert re.fullmatch(r"TDG-E\d{3}", vars(cls)["code"] if cls is not errors.UsageError else cls.code)
    assert cls.__doc__
    assert cls.__doc__.strip().endswith((".", "it."))


@each_class
def test_printed_shape(cls: type[TidingsError]) -> None:
    first, *rest = str(example(cls)).splitlines()
    assert first == f"{cls.code}: what happened"
    parts = [re.fullmatch(r"  (where|why|mend):\s+\S.*", line) for line in rest]
    assert all(parts)
    order = [part[1] for part in parts if part]
    assert order == [name for name in ("where", "why", "mend") if name in order]


def test_parts_not_known_are_left_out() -> None:
    assert str(errors.BusFull("the disk is full")) == "TDG-E025: the disk is full"


def test_usage_errors_name_the_line_of_the_caller() -> None:
    assert re.fullmatch(r".*test_errors\.py:\d+", errors.InvalidName("bad").where)


@passage
@each_class
def test_errors_pass_unchanged(cls: type[TidingsError], pass_on: Callable[[Any], Any]) -> None:
    error = example(cls)
    passed = pass_on(error)
    assert type(passed) is cls
    assert str(passed) == str(error)
    assert vars(passed) == vars(error)
    assert passed.args == error.args


@passage
@pytest.mark.parametrize("signal", SIGNALS, ids=repr)
def test_signals_pass_unchanged(signal: Exception, pass_on: Callable[[Any], Any]) -> None:
    passed = pass_on(signal)
    assert (type(passed), str(passed), vars(passed)) == (type(signal), str(signal), vars(signal))


@passage
def test_partial_passes_unchanged(pass_on: Callable[[Any], Any]) -> None:
    passed = pass_on(Partial({3: ValueError("bad")}))
    assert str(passed) == "{3: ValueError('bad')}"
    assert {index: repr(error) for index, error in passed.errors.items()} == {3: "ValueError('bad')"}
