"""The pytest plug-in: the user's app on a memory bus, in virtual time, with all that it publishes at hand::

    async def test_billing(tidings_app, tidings_running):
        await tidings_app.publish(placed, Order(1))
        await tidings_running.idle()
        assert await tidings_running.payloads(invoiced) == [Invoice(1)]

The app is opened around the test function, in its own task; so it does not matter who runs that: this plug-in, on a
``VirtualLoop``, or pytest-asyncio or anyio, in real time. Every pytest run loads this, and so
Tidings, where that is installed (some 50 ms); it looks only at tests that ask for it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tidings import App

if TYPE_CHECKING:
    from .running import Captured

MARK = "tidings(virtual=True, patience=None): run this async test on a loop of Tidings; patience: see VirtualLoop"
OTHERS = ("asyncio", "anyio", "trio")  # marks of plug-ins that run async tests
PATIENCE = 0.01  # seconds that threads and processes get before time jumps


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("tidings_app", "the app of the fixtures tidings_app and tidings_running, as module:app")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARK)


@pytest.fixture
def tidings_app(pytestconfig: pytest.Config) -> Iterator[App]:
    """The app that the ini option ``tidings_app`` names. What a test overrides in it is undone afterwards."""
    app = _named(pytestconfig.getini("tidings_app"), str(pytestconfig.rootpath))
    before = dict(app._overrides)
    yield app
    app._overrides.clear()
    app._overrides.update(before)


@pytest.fixture
def tidings_running(request: pytest.FixtureRequest, tidings_app: App) -> Iterator[Captured]:
    """``tidings_app`` on memory buses of its own while the test function runs, and what happens on them."""
    from .running import Captured, running

    item = request.node
    if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.obj):
        pytest.fail("tidings_running is for `async def` tests: the app runs on the test's event loop", pytrace=False)
    test = item.obj

    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> None:
        async with running(tidings_app):
            await test(*args, **kwargs)

    item.obj = within
    yield Captured(tidings_app)
    item.obj = test


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or any(map(pyfuncitem.get_closest_marker, OTHERS)):
        return None
    mark = pyfuncitem.get_closest_marker("tidings")
    if mark is None and "tidings_running" not in pyfuncitem.fixturenames:
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _run(pyfuncitem.obj(**given), pyfuncitem.funcargs.get("tidings_app"), **(mark.kwargs if mark else {}))
    return True


def _run(test: Any, app: Any, virtual: bool = True, patience: float | None = None) -> None:
    from .clock import run_virtual

    if not virtual:
        asyncio.run(test)
        return
    waiting = app is not None and any(registration.run != "loop" for registration in app.registrations)
    run_virtual(test, patience=(PATIENCE if waiting else 0.0) if patience is None else patience)


def _named(target: str, root: str) -> App:
    """The app of ``module:app``, looked for in pytest's root folder too."""
    mend = '[tool.pytest.ini_options] tidings_app = "shop:app", or a fixture `tidings_app` of your own'
    if not target:
        pytest.fail(f"which app? pytest's option tidings_app is not set\n  mend:  {mend}", pytrace=False)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = pkgutil.resolve_name(target)
    except (ValueError, AttributeError, ModuleNotFoundError) as error:
        pytest.fail(f"tidings_app = {target!r} cannot be found\n  why:   {error}\n  mend:  {mend}", pytrace=False)
    if not isinstance(found, App):
        pytest.fail(f"tidings_app = {target!r} is no App: it is {type(found).__name__}", pytrace=False)
    return found
