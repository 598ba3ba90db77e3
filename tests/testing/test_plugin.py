"""The pytest plug-in, in runs of its own, as a user's tests would use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SHOP = """
from tidings import App, Depends, Message, Topic
from typing import Annotated

placed, invoiced = Topic("orders.placed", int), Topic("billing.invoiced", int)
app = App("shop", "sqlite:///never-opened.db")
failed = set()

def price() -> int:
    return 10

@app.on(placed)
async def bill(order: int, price: Annotated[int, Depends(price)]) -> Message[int]:
    if order == 13:
        raise ValueError("unlucky")
    if order not in failed:
        failed.add(order)
        raise ValueError("the first time")
    return invoiced(order * price)
"""

INI = """
[pytest]
tidings_app = shop:app
addopts = --strict-markers
filterwarnings = error
"""


ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini(INI)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("TIDINGS_URL", "nats://nowhere.invalid")  # a test's app is on no such bus
    return Run(pytester)


class Run:
    """Runs a module of tests; counts its outcomes, and has its output."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def __call__(self, test: str, *options: str) -> dict[str, int]:
        self.pytester.makepyfile(test_it=test)
        done = self.pytester.runpytest_subprocess(*options, "-p", "tidings.testing.plugin")  # which so is asked first
        self.output = done.stdout.str()
        return done.parseoutcomes()


BILLING = """
import asyncio, time
import pytest
from shop import app, failed, invoiced, placed, price

class TestBilling:
    {mark}
    async def test_bill(self, tidings_app, tidings_running):
        failed.clear()
        assert tidings_app is tidings_running.app is app
        await tidings_app.publish(placed, 1, delay="2h")
        await tidings_app.publish_many([placed(2), placed(13)])
        began = asyncio.get_running_loop().time()
        await tidings_running.idle(timeout=86_400)
        assert await tidings_running.payloads(invoiced) == [20, 10]
        assert len(await tidings_running.dead("shop.bill")) == 1
        assert asyncio.get_running_loop().time() - began > 7_200
"""

REAL = """
import asyncio
import pytest
from shop import failed, invoiced, placed
from tidings.testing import VirtualLoop

{mark}
async def test_bill(tidings_running, {more}):
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
    await tidings_running.app.publish(placed, 1)
    await tidings_running.idle()
    assert await tidings_running.payloads(invoiced) == [10]
"""


@pytest.mark.parametrize("mark", ["", "@pytest.mark.tidings"])
def test_an_app_in_virtual_time(run: Run, mark: str) -> None:
    assert run(BILLING.format(mark=mark)) == {"passed": 1}, run.output


def test_beside_pytest_asyncio(run: Run) -> None:
    assert run(BILLING.format(mark=""), *ASYNCIO) == {"passed": 1}, run.output
    assert run(REAL.format(mark="@pytest.mark.asyncio", more=""), *ASYNCIO) == {"passed": 1}, run.output


def test_where_pytest_asyncio_runs_everything(run: Run) -> None:
    run.pytester.makeini(INI + "asyncio_mode = auto\n")
    assert run(REAL.format(mark="", more=""), *ASYNCIO) == {"passed": 1}, run.output


def test_beside_anyio(run: Run) -> None:
    more = "anyio_backend"
    fixture = "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    assert run(REAL.format(mark="@pytest.mark.anyio", more=more) + fixture, "-p", "anyio.pytest_plugin") == {
        "passed": 1
    }, run.output


def test_real_time(run: Run) -> None:
    mark = "@pytest.mark.tidings(virtual=False)"
    assert run(REAL.format(mark=mark, more="")) == {"passed": 1}, run.output


def test_an_async_test_without_an_app(run: Run) -> None:
    test = """
    import asyncio, pytest

    @pytest.mark.tidings
    async def test_wait():
        await asyncio.sleep(36_000)

    async def test_nobody_runs_this():
        pass
    """
    assert run(test) == {"passed": 1, "failed": 1}
    assert "async def functions are not natively supported" in run.output


def test_handlers_in_threads_are_waited_for(run: Run) -> None:
    test = """
    import time
    import pytest
    from tidings import App, Topic

    numbers, seen = Topic("numbers", int), []

    @pytest.fixture
    def tidings_app():
        app = App("own")

        @app.on(numbers)
        def slow(n: int) -> None:
            time.sleep(0.2)
            seen.append(n)

        return app

    async def test_it(tidings_running):
        await tidings_running.app.publish(numbers, 1)
        await tidings_running.idle()
        assert seen == [1]
    """
    assert run(test) == {"passed": 1}, run.output


def test_what_is_overridden_is_so_for_one_test(run: Run) -> None:
    test = """
    import pytest
    from shop import app, failed, invoiced, placed, price

    @pytest.fixture
    def cheap(tidings_app):
        tidings_app.override(price, lambda: 1)

    async def test_cheap(cheap, tidings_running):
        await tidings_running.app.publish(placed, 5)
        await tidings_running.idle()
        assert await tidings_running.payloads(invoiced) == [5]

    async def test_dear(tidings_running):
        await tidings_running.app.publish(placed, 6)
        await tidings_running.idle()
        assert await tidings_running.payloads(invoiced) == [60]
    """
    assert run(test) == {"passed": 2}, run.output


def test_a_test_that_fails_fails(run: Run) -> None:
    test = """
    async def test_it(tidings_running):
        found = await tidings_running.messages()
        assert found == ["something"]

    def test_again(tidings_app):
        assert tidings_app.urls == {"": "sqlite:///never-opened.db"}
    """
    assert run(test) == {"failed": 1, "passed": 1}
    assert "assert [] == ['something']" in run.output


@pytest.mark.parametrize(
    ("ini", "said"),
    [
        ("", "which app?"),
        ("tidings_app = shop:ap", "has no attribute 'ap'"),
        ("tidings_app = shap:app", "No module named 'shap'"),
        ("tidings_app = shop:placed", "is no App: it is Topic"),
    ],
)
def test_an_app_that_cannot_be_had(run: Run, ini: str, said: str) -> None:
    run.pytester.makeini(f"[pytest]\n{ini}\n")
    assert run("async def test_it(tidings_running): pass") == {"errors": 1}
    assert said in run.output
    assert "Traceback" not in run.output


def test_a_plain_test_cannot_have_a_running_app(run: Run) -> None:
    assert run("def test_it(tidings_running): pass") == {"errors": 1}
    assert "`async def`" in run.output


@pytest.mark.slow
def test_installed_it_is_there_by_itself(wheel: Path, tmp_path: Path) -> None:
    installed, project = tmp_path / "installed", tmp_path / "project"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*install, str(wheel)], check=True)
    project.mkdir()
    (project / "pytest.ini").write_text(INI)
    (project / "shop.py").write_text(SHOP)
    (project / "test_it.py").write_text(BILLING.format(mark=""))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        cwd=project,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
