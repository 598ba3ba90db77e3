"""The error tree: stable codes, one printed shape, a page for each, and safe passage between processes."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts.error_pages import document

from tidings import App
from tidings.cli._pages import pages
from tidings.gateway import refusals
from tidings.kernel import errors
from tidings.kernel.errors import Defer, Partial, Reject, Retry, Skip, TidingsError
from tidings.kernel.topics import check_topic

from . import provoked
from .provoked import FAMILIES, PROVOKED, Told

ROOT = Path(__file__).parents[2]
NAMED = (vars(errors) | vars(refusals)).values()
TREE = [cls for cls in NAMED if inspect.isclass(cls) and issubclass(cls, TidingsError)]
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
    assert cls.__doc__.strip().endswith(".")


@each_class
def test_printed_shape(cls: type[TidingsError]) -> None:
    first, *rest = str(example(cls)).splitlines()
    assert first == f"{cls.code}: what happened"
    parts = [re.fullmatch(r"  (where|why|mend):\s+\S.*", line) for line in rest]
    assert all(parts)
    order = [part[1] for part in parts if part]
    assert order == [name for name in ("where", "why", "mend") if name in order]


def test_parts_not_known_are_left_out() -> None:
    assert str(errors.DeliveryError("it is no order")) == "TDG-E050: it is no order"


@each_class
def test_what_no_raiser_mends_is_mended_by_its_class(cls: type[TidingsError]) -> None:
    assert cls("what happened").mend == cls.mending
    assert cls("what happened", mend="the cure").mend == "the cure"


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


# -- each is raised by something, and has a page


def shown(error: BaseException) -> str:
    """What an error prints, as the pages have it: in /srv/shop, by shop.py, whose lines are 7, 8, … as they appear."""
    places: dict[str, str] = {}
    text = re.sub(
        r"\S*\.py:\d+",
        lambda place: places.setdefault(place[0], f"shop.py:{7 + len(places)}"),
        re.sub(r"\w+\.<locals>\.", "", str(error)),
    )
    folder = re.search(r"(/\S+?)(/data)?/shop\.db", text)
    return text.replace(folder[1], "/srv/shop") if folder else text


def test_every_class_is_provoked_or_a_family() -> None:
    assert PROVOKED.keys().isdisjoint(FAMILIES)
    assert {*PROVOKED, *FAMILIES} == set(TREE)
    assert all(cls.__subclasses__() for cls in FAMILIES)


@pytest.mark.parametrize("cls", PROVOKED, ids=lambda cls: cls.__name__)
async def test_provoked(cls: type[TidingsError], tmp_path: Path) -> None:
    """It is raised, by nothing but real use, says how to mend it, and its page shows just what it prints."""
    with pytest.raises((cls, Told)) as failure:
        await PROVOKED[cls](tmp_path)
    assert type(failure.value) in (cls, Told)
    printed = shown(failure.value)
    assert printed.startswith(f"{cls.code}: ")
    assert re.search(r"^  mend:  \S", printed, re.MULTILINE)
    assert f"```text\n{printed}\n```" in pages()[cls.code].text


@each_class
def test_every_class_has_a_page(cls: type[TidingsError]) -> None:
    page = pages()[cls.code]
    assert page.kind is cls
    assert page.text.count("**Mend it:** ") == 1
    assert set(re.findall(r"TDG-E\d{3}", page.text)) <= set(pages())


def test_no_page_is_of_a_class_that_is_gone() -> None:
    headings = re.findall(r"^# (TDG-E\d{3})$", (ROOT / "src/tidings/cli/errors.md").read_text(), re.MULTILINE)
    assert headings == list(pages())


def test_the_documents_pages_are_fresh() -> None:
    told = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert told == document(), "run: python -m scripts.error_pages > docs/reference/errors.md"


# -- tracebacks lead with the user's frames


@pytest.mark.parametrize("run", ["loop", "thread", "process"])
async def test_tracebacks_of_dead_letters_begin_with_the_handler(run: str) -> None:
    async def ship(order: provoked.Order) -> None:
        provoked.ship(order)

    with pytest.raises(Told) as failure:
        await provoked.dead(ship if run == "loop" else provoked.ship, told="tdgtraceback", run=run)
    text = str(failure.value)
    files = re.findall(r'^  File "([^"]+)", line \d+, in (\w+)', text, re.MULTILINE)
    assert [name for _, name in files if name != "_ship"] == (["ship", "ship"] if run == "loop" else ["ship"])
    assert not any(file.startswith(errors.PACKAGE) for file, _ in files)
    assert text.rstrip().endswith("LookupError: no parcel {'id': 7}")


async def test_tracebacks_in_the_log_begin_with_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    app, over = App("shop", "memory://"), asyncio.Event()

    @app.on("orders.placed", live=True)
    async def look(order: provoked.Order) -> None:
        over.set()
        provoked.ship(order)

    async with app:
        await app.publish(provoked.placed, provoked.ORDER)
        await over.wait()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info
    assert [frame.name for frame in traceback.extract_tb(record.exc_info[2])] == ["look", "ship", "_ship"]


def test_an_error_of_ours_alone_keeps_its_traceback() -> None:
    with pytest.raises(errors.InvalidName) as failure:
        check_topic("a b")
    trace = failure.value.__traceback__
    assert trace
    ours = failure.value.with_traceback(trace.tb_next)
    assert [frame.name for frame in traceback.extract_tb(errors.users(ours).__traceback__)] == ["check_topic"]
