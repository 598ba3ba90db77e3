"""Everything wrong a user can send, on one SQLite bus: a clear error each, and no accepted message is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from tidings import App, Backoff, Message, Topic, UsageError
from tidings.kernel.errors import TidingsError
from tidings.kernel.transport import Inspectable

HERE = Path(__file__)


class Order(Struct):
    id: str
    total: float = 0.0


placed = Topic("orders.placed", Order)
raw: Topic[Any] = Topic("orders.placed")


def made(build: Callable[[], Any]) -> TidingsError:
    """The error of wrong code; it has a code, what, and how to mend it."""
    with pytest.raises(TidingsError) as caught:
        build()
    return caught.value


def two_of_one_group() -> None:
    app = App("shop", "memory://")
    app.on(placed, group="one")(lambda order: None)
    app.on("other.topic", group="one")(lambda order: None)


WRONG: dict[str, tuple[Callable[[], Any], str, str]] = {
    "invalid topic": (lambda: Topic("orders placed"), "TDG-E001", "orders%20placed"),
    "invalid pattern": (lambda: App("a", "memory://").on("orders.#"), "TDG-E001", "'>'"),
    "publishing to a pattern": (lambda: Topic("orders.*")({}), "TDG-E001", "bind"),
    "NaN": (lambda: asyncio.run(publish(placed(Order("1", float("nan"))))), "TDG-E008", "None"),
    "64 MiB": (lambda: asyncio.run(publish(Topic("blobs", bytes)(bytes(64 * 2**20)))), "TDG-E009", "Claim Check"),
    "no URL": (lambda: App("a", "shop.db"), "TDG-E006", "sqlite:///shop.db"),
    "unknown scheme": (lambda: asyncio.run(open_url("sqlit:///x.db")), "TDG-E006", "'sqlite'"),
    "unknown option": (lambda: asyncio.run(open_url("sqlite:///x.db?leese=1s")), "TDG-E006", "'lease'"),
    "wrong payload": (lambda: placed("not an order"), "TDG-E008", "Order"),  # type: ignore[arg-type]
    "misspelt option": (lambda: App("a", "memory://").on(placed, concurency=2)(print), "TDG-E002", "'concurrency'"),  # type: ignore[call-overload]
    "two of one group": (two_of_one_group, "TDG-E004", "group="),
}


async def publish(message: Message[Any]) -> None:
    async with App("a", "memory://").connect() as app:
        await app.publish(message)


async def open_url(url: str) -> None:
    async with App("a", url).connect():
        pass


@pytest.mark.parametrize("name", WRONG)
def test_wrong_code_is_told_so(name: str) -> None:
    build, code, mend = WRONG[name]
    error = made(build)
    assert error.code == code
    assert mend in error.mend
    assert error.what
    if isinstance(error, UsageError):
        assert error.where.startswith(str(HERE)), error.where


async def test_what_cannot_be_handled_lies_in_the_dead_letters(tmp_path: Path) -> None:
    """Undecodable, an unknown content type, an empty body, a wrong return: each a dead letter with its body; the good
    message beside them is handled, and so is all that came before a refused publish."""
    app = App("shop", f"sqlite:///{tmp_path}/shop.db", backoff=Backoff(attempts=2, first=0.01))
    handled: list[str] = []

    @app.on(placed)
    async def bill(order: Order) -> Any:
        handled.append(order.id)
        return 42 if order.id == "returns a number" else None

    sent: list[Message[Any]] = [
        raw({"id": 7}),
        raw("plain text"),
        Message("orders.placed", body=b"<order/>", content_type="application/xml", type="orders.placed"),
        Message("orders.placed", body=b"", type="orders.placed"),
        placed(Order("returns a number")),
        placed(Order("good")),
    ]
    async with app:
        await app.publish_many(sent)
        with pytest.raises(UsageError):
            await app.publish(Topic("orders.placed", bytes)(bytes(17 * 2**20)))
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        async with asyncio.timeout(20):
            while (await bus.groups("shop.bill"))[0].dead < 5 or "good" not in handled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        letters = [stored.message for stored in await bus.peek("_dead.shop.bill")]
    assert sorted(handled) == ["good", "returns a number"]
    assert [letter.header("tdgreason") for letter in letters].count("undecodable") == 4
    assert [letter.header("tdgreason") for letter in letters].count("wrong return type") == 1
    assert {letter.body for letter in letters} >= {b'{"id":7}', b"plain text", b"<order/>", b""}
    assert all("TDG-E05" in letter.header("tdgdetail") for letter in letters)
    assert any("content type 'application/xml'" in letter.header("tdgdetail") for letter in letters)


async def test_a_renamed_handler_is_reported_and_its_messages_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"

    def shop(name: str) -> App:
        app = App("shop", url)

        async def handle(order: Order) -> None: ...

        handle.__name__ = handle.__qualname__ = name
        app.on(placed)(handle)
        return app

    async with shop("bill"):
        pass
    async with App("shop", url).connect() as app:
        await app.publish(placed(Order("waits")))
    async with shop("invoice") as renamed:
        bus = renamed.bus()
        assert isinstance(bus, Inspectable)
        assert (await bus.groups("shop.bill"))[0].lag == 1
    assert "group shop.bill has no handler, and 1 messages wait" in caplog.text
    assert "tidings groups rename shop.bill NEW" in caplog.text


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    """A transport whose client is not installed: its entry point is there, its import fails."""
    info = tmp_path / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tidings.transports]\npigeon = carrier:Pigeon\n")
    (tmp_path / "carrier.py").write_text("import a_client_that_is_not_installed\n")
    code = "import asyncio, tidings\nasync def main():\n    async with tidings.App('a', 'pigeon://x').connect(): ...\n"
    code += "asyncio.run(main())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "TDG-E007" in ran.stderr
    assert "pip install 'tidings[pigeon]'" in ran.stderr
    assert "a_client_that_is_not_installed" in ran.stderr
