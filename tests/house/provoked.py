"""Every error, provoked as a user would: by the public API, on a real bus. What each prints is its page's example."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.gateway.over_http import listening

from tidings import App, Backoff, Message, Service, State, Table, TidingsError, Topic, transact
from tidings.gateway import Access, Client, Limits, Rights, WebhookIn, asgi, hashed, refusals
from tidings.kernel import errors
from tidings.kernel.message import new_id

Provoke = Callable[[Path], Awaitable[None]]

PROVOKED: dict[type[TidingsError], Provoke] = {}
"""For each class what raises it, given an empty folder."""

FAMILIES = {
    errors.TidingsError: "the base; printed by the command line around an error that is none of ours",
    errors.UsageError: "the base of what the calling code did wrong: each case has a class",
    errors.DeliveryError: "the base of what makes one message a dead letter at once: each case has a class",
    refusals.Refused: "the base of what a served bus refuses its clients: each case has a class",
}
"""Classes that nothing raises, and why they are there."""

PUBLISH = "app.publish(Topic('orders.placed'), {})"

Order = dict[str, int]
placed, numbers, ORDER = Topic("orders.placed", Order), Service("numbers.count", int, int), {"id": 7}


class Told(Exception):
    """What another process, a dead letter, or a server's answer says of an error."""


def provokes(kind: type[TidingsError]) -> Callable[[Provoke], Provoke]:
    def note(provoke: Provoke) -> Provoke:
        PROVOKED[kind] = provoke
        return provoke

    return note


async def shop(work: Callable[[App], Awaitable[Any]], url: str = "memory://") -> None:
    """Do something with an app that is connected and has no handlers."""
    app = App("shop", url)
    async with app.connect():
        await work(app)


async def dead(
    handler: Callable[..., Any], body: bytes = b'{"id":7}', *, told: str = "tdgdetail", **options: Any
) -> None:
    """Raise ``Told`` with what a header says of the dead letter that a handler leaves for a body."""
    app, letters = App("shop", "memory://", backoff=Backoff(attempts=1)), asyncio.Queue[Message[Any]]()
    app.on(placed, **options)(handler)

    @app.on(f"_dead.shop.{handler.__name__}", live=True)
    async def letter(message: Message[Any]) -> None:
        letters.put_nowait(message)

    async with app:
        await app.publish(Message("orders.placed", body=body, content_type="application/json"))
        raise Told((await letters.get()).header(told))


async def streamed(*replies: tuple[str, int]) -> None:
    """Ask a service whose answerer replies with these (run, index), as two processes or a lost one would."""
    app = App("shop", "memory://", grace=0)

    @app.answer(numbers)
    async def by_hand(n: int, message: Message[int]) -> int:
        for run, index in replies:
            headers = (("tdgreply", "item"), ("tdgrun", run), ("tdgindex", str(index)))
            fields: dict[str, Any] = {"headers": headers, "correlation_id": message.id, "address": message.reply_to}
            assert not await app.bus().publish([Message("numbers.count", body=b"1", id=new_id(), **fields)])
        await asyncio.sleep(60)
        return 0

    async with app:
        async for _ in app.request_stream(numbers, 1):
            pass


async def child(folder: Path, *lines: str) -> None:
    """Raise ``Told`` with the last error that a program prints."""
    start = ["import asyncio, os, sys", "from tidings import App, Topic", "app = App('shop', 'sqlite:///shop.db')"]
    program = folder / "shop.py"
    program.write_text("\n".join([*start, *lines]))
    with (folder / "said").open("w+") as said:
        process = await asyncio.create_subprocess_exec(sys.executable, program, cwd=folder, stdout=said, stderr=said)
        await process.wait()
        said.seek(0)
        text = said.read()
    raise Told(text[text.rindex("TDG-E") :].rstrip())


async def asked(url: str, head: str, body: bytes = b"", length: int | None = None) -> None:
    """POST, and raise ``Told`` when the answer is a problem. ``length``: what is said of the body's, where untrue."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    said = len(body) if length is None else length
    writer.write(
        f"POST {head}\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {said}\r\n\r\n".encode() + body
    )
    answer = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    await writer.wait_closed()
    told = json.loads(answer)
    if "detail" in told:
        parts = (f"  {name + ':':<7}{told[name]}" for name in ("why", "mend") if name in told)
        raise Told("\n".join([f"{told['type'].removeprefix('urn:tidings:')}: {told['detail']}", *parts]))


async def opened(url: str) -> None:
    await shop(lambda app: asyncio.sleep(0), url)


# -- whose code is wrong


@provokes(errors.InvalidName)
async def a_pattern_is_published_to(folder: Path) -> None:
    await shop(lambda app: app.publish(Topic("orders.*", Order), ORDER))


@provokes(errors.InvalidOption)
async def a_delay_means_nothing(folder: Path) -> None:
    await shop(lambda app: app.publish(placed, ORDER, delay="5x"))


@provokes(errors.InvalidHandler)
async def nothing_fills_a_parameter(folder: Path) -> None:
    app = App("shop", "memory://")

    @app.on("orders.{customer}.placed")
    async def bill(order: Order, custmer: str) -> None: ...

    async with app:
        pass


@provokes(errors.DuplicateGroup)
async def two_handlers_have_one_name(folder: Path) -> None:
    app = App("shop", "memory://")

    @app.on("orders.placed")
    async def bill(order: Order) -> None: ...

    @app.on("orders.changed", group="shop.bill")
    async def changed(order: Order) -> None: ...

    async with app:
        pass


@provokes(errors.Unsupported)
async def a_file_joins_a_transaction(folder: Path) -> None:
    await shop(lambda app: app.publish_in(object(), placed(ORDER)), f"sqlite:///{folder}/shop.db")


@provokes(errors.InvalidURL)
async def a_scheme_is_misspelt(folder: Path) -> None:
    await opened("sqlit:///shop.db")


@provokes(errors.MissingExtra)
async def a_client_is_not_installed(folder: Path) -> None:
    await child(folder, "sys.modules['asyncpg'] = None", "app.use('postgresql://localhost/shop')", *connected("None"))


@provokes(errors.PayloadRefused)
async def a_payload_is_no_number(folder: Path) -> None:
    await shop(lambda app: app.publish(Topic("prices.changed", float), float("nan")))


@provokes(errors.TooLarge)
async def a_payload_is_large(folder: Path) -> None:
    await shop(lambda app: app.publish(Topic("films.stored", bytes), b"x" * 2**24))


@provokes(errors.NotOpen)
async def a_closed_app_publishes(folder: Path) -> None:
    await App("shop", "memory://").publish(placed, ORDER)


@provokes(errors.NothingToRun)
async def an_empty_app_runs(folder: Path) -> None:
    await App("shop", "memory://").serve()


@provokes(errors.NotFound)
async def a_group_is_misspelt(folder: Path) -> None:
    app = App("shop", "memory://")

    @app.on(placed)
    async def bill(order: Order) -> None: ...

    async with app:
        app.pause("shop.bil")


# -- what a bus cannot do


@provokes(errors.BusError)
async def a_group_is_dropped_while_it_works(folder: Path) -> None:
    app = App("shop", f"sqlite:///{folder}/shop.db")

    @app.on(placed)
    async def bill(order: Order) -> None: ...

    async with app:
        bus: Any = app.bus()
        await bus.drop("shop.bill")


@provokes(errors.BusUnavailable)
async def a_folder_is_missing(folder: Path) -> None:
    await opened(f"sqlite:///{folder}/data/shop.db")


@provokes(errors.BusReadOnly)
async def a_folder_is_read_only(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # one that another user may enter
        os.chmod(name, 0o555)
        root = os.geteuid() == 0
        if root:  # root may write anywhere
            os.seteuid(65534)
        try:
            await opened(f"sqlite:///{name}/shop.db")
        finally:
            if root:
                os.seteuid(0)


@provokes(errors.BusCorrupt)
async def a_file_is_no_bus(folder: Path) -> None:
    (folder / "shop.db").write_text("this is no database; " * 100)
    await opened(f"sqlite:///{folder}/shop.db")


@provokes(errors.BusTooNew)
async def a_file_is_of_the_future(folder: Path) -> None:
    await opened(f"sqlite:///{folder}/shop.db")
    with sqlite3.connect(folder / "shop.db") as con:
        con.execute("PRAGMA user_version = 99")
    con.close()
    await opened(f"sqlite:///{folder}/shop.db")


async def backlog(work: Callable[[App], Awaitable[Any]]) -> None:
    """A bus that has room for one message, which nobody settles."""
    app = App("shop", "memory://?messages=1", grace=0)

    @app.on(placed)
    async def bill(order: Order) -> None:
        await asyncio.sleep(60)

    async with app:
        await work(app)


@provokes(errors.BusFull)
async def nobody_settles(folder: Path) -> None:
    async def work(app: App) -> None:
        for _ in range(2):
            await app.publish(placed, ORDER)

    await backlog(work)


@provokes(errors.Conflict)
async def conflict(folder: Path) -> None:
    stock, app = Table("stock", int), App("shop", f"sqlite:///{folder}/shop.db")

    async def put(state: State) -> None:
        state.put(stock, "a", 1)

    async def take(state: State) -> None:
        await state.get(stock, "a")
        await transact(app, put)
        state.put(stock, "a", 2)

    async with app.connect():
        await transact(app, take)


@provokes(errors.PublishFailed)
async def a_list_does_not_fit(folder: Path) -> None:
    await backlog(lambda app: app.publish_many([placed(ORDER), placed(ORDER)]))


@provokes(errors.BusForked)
async def a_fork_publishes(folder: Path) -> None:
    lines = (
        "async def tried():",
        "    try:",
        f"        await {PUBLISH}",
        "    except Exception as error:",
        "        print(error, file=sys.stderr, flush=True)",
        "    os._exit(0)",
    )
    await child(
        folder, *lines, *connected("(asyncio.to_thread(os.waitpid, pid, 0) if (pid := os.fork()) else tried())")
    )


@provokes(errors.UnsafeLibrary)
async def an_old_sqlite(folder: Path) -> None:
    old = ("import apsw", "apsw.sqlite_lib_version = lambda: '3.46.1'")  # what a distribution's apsw would say
    await child(folder, *old, *connected(PUBLISH))


def connected(asks: str) -> Sequence[str]:
    """Lines of a program."""
    return "async def work():", "    async with app.connect():", f"        await {asks}", "asyncio.run(work())"


# -- what a request brings


@provokes(errors.RequestError)
async def a_streamed_reply_is_lost(folder: Path) -> None:
    await streamed(("run1", 0), ("run1", 2))


@provokes(errors.NoAnswerer)
async def nobody_answers(folder: Path) -> None:
    await shop(lambda app: app.request(numbers, 1))


@provokes(errors.RequestTimeout)
async def a_reply_comes_too_late(folder: Path) -> None:
    app = App("shop", "memory://", grace=0)

    @app.answer(numbers)
    async def count(n: int) -> int:
        await asyncio.sleep(60)
        return n

    async with app:
        await app.request(numbers, 1, timeout="50ms")


@provokes(errors.AnswerFailed)
async def an_answerer_raises(folder: Path) -> None:
    app = App("shop", "memory://")

    @app.answer(numbers)
    async def count(n: int) -> int:
        raise LookupError("no such number")

    async with app:
        await app.request(numbers, 1)


@provokes(errors.ReplyRestarted)
async def a_stream_begins_anew(folder: Path) -> None:
    await streamed(("run1", 0), ("run2", 0))


# -- what makes a dead letter


@provokes(errors.Undecodable)
async def a_body_is_another_type(folder: Path) -> None:
    async def bill(order: Order) -> None: ...

    await dead(bill, b'{"id":"seven"}')


@provokes(errors.WrongReturn)
async def a_handler_returns_a_number(folder: Path) -> None:
    async def bill(order: Order) -> int:
        return 7

    await dead(bill)


@provokes(errors.HandlerTimeout)
async def a_handler_is_slow(folder: Path) -> None:
    async def bill(order: Order) -> None:
        await asyncio.sleep(60)

    await dead(bill, timeout="50ms")


def render(order: Order) -> None:
    """Dies as native code does."""
    os._exit(5)


@provokes(errors.HandlerCrashed)
async def a_child_process_dies(folder: Path) -> None:
    await dead(render, run="process")


# -- what a served bus refuses

PLACED = "/topics/orders.placed HTTP/1.1"
TILL = Client(name="till", token=hashed("tdg_till"), rights=Rights(publish=("orders.>",)))


@provokes(refusals.Unauthenticated)
async def somebody_says_not_who_it_is(folder: Path) -> None:
    async with listening(asgi("memory://", access=Access([TILL], anonymous=None))) as url:
        await asked(url, PLACED)


@provokes(refusals.Forbidden)
async def a_till_publishes_payments(folder: Path) -> None:
    async with listening(asgi("memory://", access=Access([TILL], anonymous=None))) as url:
        await asked(url, "/topics/payments.made HTTP/1.1\r\nauthorization: Bearer tdg_till")


@provokes(refusals.Limited)
async def somebody_publishes_too_fast(folder: Path) -> None:
    async with listening(asgi("memory://", limits=Limits(rate=10))) as url:
        while True:
            await asked(url, PLACED)


@provokes(refusals.TooSlow)
async def a_body_does_not_come(folder: Path) -> None:
    async with listening(asgi("memory://", limits=Limits(patience=0.1))) as url:
        await asked(url, PLACED, length=10)


@provokes(refusals.Malformed)
async def a_body_is_no_json(folder: Path) -> None:
    async with listening(asgi("memory://")) as url:
        await asked(url, f"{PLACED}\r\ncontent-type: application/json", b'{"id": 7')


@provokes(refusals.Unverified)
async def a_webhook_is_signed_with_another_secret(folder: Path) -> None:
    hook = WebhookIn(name="github", topic="github.{type}", scheme="github", secrets=("ours",))
    async with listening(asgi("memory://", webhooks_in=[hook])) as url:
        await asked(url, "/webhooks/github HTTP/1.1\r\nx-hub-signature-256: sha256=00", b"{}")


@provokes(refusals.UnsupportedMediaType)
async def curl_says_that_it_is_a_form(folder: Path) -> None:
    async with listening(asgi("memory://")) as url:
        await asked(url, f"{PLACED}\r\ncontent-type: application/x-www-form-urlencoded", b'{"id": 7}')


# -- tracebacks


def ship(order: Order) -> None:
    """Fails in code of the user's, two frames deep."""
    _ship(order)


def _ship(order: Order) -> None:
    raise LookupError(f"no parcel {order}")
