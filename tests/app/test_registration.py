"""What is wrong is refused where it is written: code, the user's line, how to mend it, the nearest name."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from msgspec import Struct
from tests.kernel.rig import virtual

from tidings import App, Backoff, Depends, Message, Router, Service, TidingsError, Topic
from tidings.kernel import errors
from tidings.kernel.errors import (
    DuplicateGroup,
    InvalidHandler,
    InvalidName,
    InvalidOption,
    InvalidURL,
    NotFound,
    NothingToRun,
    NotOpen,
    PayloadRefused,
)

if TYPE_CHECKING:
    from decimal import Decimal as Absent


class Order(Struct):
    id: str


class Plain:
    pass


placed = Topic("orders.placed", Order)
everything = Topic("orders.>", Order)
readings = Topic("sensors.{device}.temperature", float)
quotes = Service("prices.quote", Order, float)


async def bill(order: Order) -> None: ...
def sync(order: Order) -> None: ...
def sync_batch(orders: list[Order]) -> None: ...
async def nothing() -> None: ...
async def unknown(order: Order, device: str) -> None: ...
async def misspelt(reading: float, devise: str) -> None: ...
async def unresolvable(order: Absent) -> None: ...
async def unresolvable_too(order: asyncio.Absent) -> None: ...  # type: ignore[name-defined]
async def undecodable(order: Plain) -> None: ...
async def keywords(*, order: Order) -> None: ...
async def batched(orders: list[Order], device: str) -> None: ...
async def unbatched(orders: Order) -> None: ...
async def positional(order: Order, device: str, /) -> None: ...


async def connection() -> int:
    return 1


def about(message: Message[Any]) -> str:
    return message.id


def recursive(me: Annotated[int, Depends(lambda: 0)]) -> int:
    return me


def depends(order: Order, connection: Annotated[int, Depends(connection)]) -> None: ...
def depends_app(order: Order, connection: Annotated[int, Depends(connection, scope="app")]) -> None: ...
async def per_app(order: Order, id: Annotated[str, Depends(about, scope="app")]) -> None: ...
def wants_app(order: Order, app: App) -> None: ...


def app(**more: Any) -> App:
    return App("shop", "memory://", **more)


def on(source: Any, fn: Callable[..., Any], **options: Any) -> Callable[[], object]:
    return lambda: app().on(source, **options)(fn)


def answered(**options: Any) -> object:
    return app().answer(quotes, **options)(bill)  # type: ignore[arg-type]


REFUSED: list[tuple[str, Callable[[], object], type[TidingsError], str, str]] = [
    # what is wrong, how to do it, the error, in its text, in its mend
    ("unknown option", on(placed, bill, concurency=3), InvalidOption, "concurency", "'concurrency'"),
    ("bad run", on(placed, bill, run="fork"), InvalidOption, "run cannot be 'fork'", "thread"),
    ("bad concurrency", on(placed, bill, concurrency=0), InvalidOption, "concurrency cannot be 0", "at least 1"),
    ("bad batch", on(placed, bill, batch="9"), InvalidOption, "batch cannot be", "at least 1"),
    ("bad timeout", on(placed, bill, timeout="soon"), InvalidOption, "timeout cannot be 'soon'", "250ms"),
    ("bad backoff", on(placed, bill, backoff=5), InvalidOption, "backoff cannot be 5", "Backoff(attempts=5)"),
    ("bad breaker", on(placed, bill, breaker=5), InvalidOption, "breaker cannot be 5", "None: off"),
    ("bad middleware", on(placed, bill, middleware=5), InvalidOption, "middleware cannot be 5", "functions"),
    ("middleware that cannot be called", on(placed, bill, middleware=[5]), InvalidOption, "middleware", "functions"),
    ("bad to", on(placed, bill, to="orders"), InvalidOption, "to cannot be 'orders'", "Topic("),
    ("no backoff", on(placed, bill, backoff=None), InvalidOption, "backoff cannot be None", "attempts=1"),
    ("no default backoff", lambda: App("shop", backoff=None), InvalidOption, "backoff cannot be None", "attempts=1"),  # type: ignore[arg-type]
    ("bad default middleware", lambda: App("shop", middleware=5), InvalidOption, "middleware cannot be 5", "functions"),  # type: ignore[arg-type]
    ("default as a breaker", lambda: App("shop", breaker="default"), InvalidOption, "breaker cannot be", "None: off"),  # type: ignore[arg-type]
    ("bad default backoff", lambda: App("shop", backoff=5), InvalidOption, "backoff cannot be 5", "Backoff("),  # type: ignore[arg-type]
    ("bad default breaker", lambda: App("shop", breaker=5), InvalidOption, "breaker cannot be 5", "Breaker("),  # type: ignore[arg-type]
    ("no router", lambda: app().include(5), InvalidOption, "5 is no Router", "app.include"),  # type: ignore[arg-type]
    ("no headers", lambda: placed(Order("A1"), headers=[]), InvalidOption, "headers cannot be []", "headers={"),  # type: ignore[arg-type]
    ("bad start", on(placed, bill, start="last"), InvalidOption, "start cannot be 'last'", "'first'"),
    ("naive start", on(placed, bill, start=datetime(2026, 1, 1)), InvalidOption, "start", "time zone"),
    ("bad group", on(placed, bill, group="a b"), InvalidName, "'a b'", "a%20b"),
    ("no pattern", on("orders placed", bill), InvalidName, "orders placed", "orders%20placed"),
    ("mqtt pattern", on("orders/#", bill), InvalidName, "orders/#", "MQTT"),
    ("reserved pattern", on("_group.x", bill), InvalidName, "reserved", "group.x"),
    ("reserved topic", lambda: Topic("_tick.x"), InvalidName, "reserved", "tick.x"),
    ("reserved service", lambda: Service("_x", int, int), InvalidName, "reserved", ""),
    ("no service name", lambda: Service("a.*", int, int), InvalidName, "pattern", ""),
    ("captured twice", lambda: Topic("a.{b}.{b}"), InvalidName, "twice", ""),
    ("no payload", on(placed, nothing), InvalidHandler, "takes no payload", "first parameter"),
    ("only keywords", on(placed, keywords), InvalidHandler, "takes no payload", "first parameter"),
    ("unknown parameter", on(placed, unknown), InvalidHandler, "'device' that nothing fills", "capture"),
    ("misspelt capture", on(readings, misspelt), InvalidHandler, "'devise'", "'device'"),
    ("positional only", on(readings, positional), InvalidHandler, "device", ""),
    ("unresolvable", on("orders.x", unresolvable), InvalidHandler, "cannot be resolved", "TYPE_CHECKING"),
    ("unresolvable attribute", on("orders.x", unresolvable_too), InvalidHandler, "cannot be resolved", ""),
    ("type nobody decodes", on("orders.x", undecodable), InvalidHandler, "payloads cannot be Plain", "Struct"),
    ("batch and capture", on(readings, batched, batch=5), InvalidHandler, "a batch and 'device'", "list[Message[T]]"),
    ("batch of one", on(placed, unbatched, batch=5), InvalidHandler, "Order", "list[T]"),
    ("live and group", on(placed, bill, live=True, group="x"), InvalidHandler, "live", "live=True"),
    ("live and start", on(placed, bill, live=True, start="first"), InvalidHandler, "live", "live=True"),
    ("live and to", on(placed, bill, live=True, to=placed), InvalidHandler, "live", "live=True"),
    ("live and backoff", on(placed, bill, live=True, backoff=Backoff()), InvalidHandler, "live", "live=True"),
    ("async in a thread", on(placed, bill, run="thread"), InvalidHandler, "async", "plain def"),
    ("no topic", lambda: app().on(bill), InvalidHandler, "not told what to listen to", "@app.on(topic)"),  # type: ignore[call-overload]
    ("batch in a thread", on(placed, sync_batch, batch=5, run="thread"), InvalidHandler, "batch", "run="),
    ("within alone", on(placed, bill, within="5s"), InvalidHandler, "within=", "batch="),
    ("to with captures", on(placed, bill, to=readings), InvalidHandler, "to=", "bind"),
    ("to a pattern", on(placed, bill, to=everything), InvalidHandler, "to=", ""),
    ("to a reserved topic", on(placed, bill, to=Topic("_dead.x")), InvalidHandler, "to=", ""),
    ("async dependency in a thread", on(placed, depends), InvalidHandler, "async dependency", "app"),
    ("app dependency in a process", on(placed, depends_app, run="process"), InvalidHandler, "", ""),
    ("app in a process", on(placed, wants_app, run="process"), InvalidHandler, "'app'", ""),
    ("app dependency on a message", on(placed, per_app), InvalidHandler, "", ""),
    ("nested in a process", on(placed, lambda order: None, run="process"), InvalidHandler, "process", ""),
    ("bus of a topic", on(placed, bill, bus="x"), InvalidOption, "bus= goes with a pattern", "Topic"),
    ("unknown bus", on("orders.x", bill, bus="device"), InvalidName, "no bus 'device'", ""),
    ("unknown answer option", lambda: answered(start="first"), InvalidOption, "'start'", ""),
    ("bad interval", lambda: app().every("soon"), InvalidOption, "'soon'", "250ms"),
    ("too short an interval", lambda: app().every("1ms"), InvalidOption, "interval", "10 ms"),
    ("bad cron", lambda: app().cron("0 9 * *"), InvalidOption, "cron cannot be", "five fields"),
    ("bad zone", lambda: app().cron("0 9 * * *", tz="Europe/Roma"), InvalidOption, "tz cannot be", "IANA"),
    ("dotted app", lambda: App("my.shop", "memory://"), InvalidName, "my.shop", "-"),
    ("app of spaces", lambda: App("my shop", "memory://"), InvalidName, "my shop", ""),
    ("no URL", lambda: App("shop", "shop.db"), InvalidURL, "'shop.db' is no bus URL", "sqlite:///shop.db"),
    ("no URL of a bus", lambda: App("shop", devics="mqtt"), InvalidURL, "'mqtt'", "://"),
    ("grace", lambda: App("shop", "memory://", grace=-1), InvalidOption, "grace", ""),
    ("use of unknown bus", lambda: app(devices="memory://").use("memory://", "device"), InvalidName, "", "'devices'"),
]


@pytest.mark.parametrize(("attempt", "error", "what", "mend"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_at_its_line(attempt: Callable[[], object], error: type[TidingsError], what: str, mend: str) -> None:
    with pytest.raises(error) as refusal:
        attempt()
    told = refusal.value
    assert what in told.what + told.why
    assert mend in told.mend
    assert told.where.startswith(f"{__file__}:"), told.where
    line = Path(__file__).read_text().splitlines()[int(told.where.rpartition(":")[2]) - 1]
    assert line.strip(), "it names an empty line"


def test_a_handlers_own_line() -> None:
    with pytest.raises(InvalidHandler) as refusal:
        app().on(placed)(unknown)
    assert refusal.value.where == f"{__file__}:{unknown.__code__.co_firstlineno}"


def test_users_whose_folder_is_called_like_ours() -> None:
    """Only our own files are left out when the user's line is looked for."""
    path = errors.PACKAGE.rstrip(os.sep) + "_shop/handlers.py"
    code = compile("def call():\n    return caller()\n", path, "exec")
    names: dict[str, Any] = {"caller": errors.caller}
    exec(code, names)
    assert names["call"]() == f"{path}:2"


def test_main_cannot_run_in_a_process() -> None:
    def pretended(order: Order) -> None: ...

    pretended.__module__, pretended.__qualname__ = "__main__", "pretended"
    with pytest.raises(InvalidHandler) as refusal:
        app().on(placed, run="process")(pretended)
    assert "__main__" in refusal.value.why
    assert "tidings run" in refusal.value.mend


def test_a_dependency_on_itself() -> None:
    def loop(me: Annotated[int, Depends(lambda: 0)]) -> int:
        return me

    loop.__annotations__["me"] = Annotated[int, Depends(loop)]

    async def handler(order: Order, n: int) -> None: ...

    handler.__annotations__ = {"order": Order, "n": Annotated[int, Depends(loop)], "return": None}
    with pytest.raises(InvalidHandler, match="depends on itself"):
        app().on(placed)(handler)


def named(name: str) -> Callable[[Order], Any]:
    async def fn(order: Order) -> None: ...

    fn.__name__ = fn.__qualname__ = name
    return fn


@pytest.mark.parametrize(
    "register",
    [
        lambda a, r: (a.on(placed)(named("bill")), a.on(placed)(named("bill"))),
        lambda a, r: (a.on(placed)(named("bill")), a.on("orders.x", group="shop.bill")(named("other"))),
        lambda a, r: (r.on(placed)(named("bill")), a.on(placed)(named("bill")), a.include(r)),
        lambda a, r: (r.on(placed)(named("bill")), a.include(r), a.include(r)),
        lambda a, r: (a.on(placed)(named("bill")), a.every("5s")(named_tick("bill"))),
        lambda a, r: (a.on(placed, live=True)(named("bill")), a.on(placed)(named("bill"))),
        lambda a, r: (a.on(placed, live=True)(named("bill")), a.on(placed, live=True)(named("bill"))),
        lambda a, r: (a.answer(quotes)(named("bill")), a.on(placed, group="prices.quote")(named("other"))),
    ],
)
def test_two_handlers_of_one_group(register: Callable[[App, Router], object]) -> None:
    """Each would get a part, or one would silently never run."""
    with pytest.raises(DuplicateGroup) as refusal:
        register(app(), Router())
    assert __file__ in refusal.value.why
    assert refusal.value.where.startswith(__file__)


def named_tick(name: str) -> Callable[[], Any]:
    async def fn() -> None: ...

    fn.__name__ = fn.__qualname__ = name
    return fn


def test_one_function_twice_needs_a_group() -> None:
    a = app()
    a.on(placed)(bill)
    with pytest.raises(DuplicateGroup):
        a.on("orders.x")(bill)
    a.on("orders.x", group="shop.also")(bill)


class Callable_:
    async def __call__(self, order: Order) -> None: ...


@pytest.mark.parametrize("fn", [functools.partial(unknown, device="x"), Callable_()], ids=["partial", "object"])
def test_callables_without_a_name_are_refused(fn: Any) -> None:
    with pytest.raises(InvalidHandler) as refusal:
        app().on(placed)(fn)
    assert refusal.value.mend


def test_a_handler_is_unchanged_by_its_decorator() -> None:
    a, r = app(), Router()
    assert a.on(placed)(bill) is bill
    assert r.on("orders.x", batch=5)(batched_orders) is batched_orders
    assert a.answer("prices.quote")(sync) is sync
    assert a.every("5s")(nothing) is nothing
    assert asyncio.run(bill(Order("1"))) is None


async def batched_orders(orders: list[Order]) -> None: ...


# -- while running


@pytest.mark.parametrize(
    ("topic", "data", "error", "text"),
    [
        (everything, Order("1"), InvalidName, "is a pattern"),
        (Topic("orders.*"), {}, InvalidName, "is a pattern"),
        (readings, 1.0, InvalidName, "is a pattern"),
        (Topic("_dead.shop.bill"), {}, InvalidName, "reserved"),
        (Topic("_dead.{group}").bind(group="x"), {}, InvalidName, "reserved"),
        (Topic("a.{x}.*").bind(x="b"), {}, InvalidName, "is a pattern"),
        (placed, {"id": "1"}, PayloadRefused, "carries Order, not dict"),
        (placed, None, PayloadRefused, "carries Order, not NoneType"),
        (Topic("n", int), "1", PayloadRefused, "carries int, not str"),
        (Topic("n", int | None), "1", PayloadRefused, "not str"),
    ],
    ids=str,
)
def test_what_cannot_be_published(topic: Any, data: Any, error: type[TidingsError], text: str) -> None:
    with pytest.raises(error, match=text) as refusal:
        topic(data)
    assert refusal.value.where.startswith(__file__)


@pytest.mark.parametrize(
    "message", [Message("_group.shop.bill", data={}), Message("a.*", data={}), Message("a b", data={})], ids=str
)
@virtual
async def test_hand_made_messages_are_checked_too(message: Message[Any]) -> None:
    async with app().connect() as a:
        with pytest.raises(InvalidName):
            await a.publish(message)


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        ({"priority": 10}, "priority cannot be 10"),
        ({"priority": "high"}, "priority cannot be 'high'"),
        ({"delay": "soon"}, "delay cannot be"),
        ({"delay": None}, "delay cannot be"),
        ({"expires": -1}, "expires cannot be"),
        ({"at": datetime(2026, 1, 1)}, "at cannot be"),
        ({"at": "tomorrow"}, "at cannot be"),
        ({"key": 7}, "key cannot be 7"),
        ({"id": 7}, "id cannot be 7"),
        ({"headers": {"a": 1}}, "header 'a' cannot be 1"),
        ({"headers": {"tdgreason": "x"}}, "reserved"),
        ({"prioriti": 1}, "'priority'"),
        ({"key": "\ud800"}, "key"),
        ({"headers": {"a": "\ud800"}}, "header"),
    ],
    ids=ascii,
)
def test_options_that_mean_nothing(meta: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOption) as refusal:
        placed(Order("1"), **meta)
    assert text in str(refusal.value)
    assert refusal.value.where.startswith(__file__)


def test_binding() -> None:
    assert readings.bind(device="a7")(1.5).topic == "sensors.a7.temperature"
    assert readings.bind(device="a7")(1.5).type == "sensors.{device}.temperature"
    for wrong in ({}, {"devise": "a"}, {"device": "a", "b": "c"}, {"device": "a.b"}, {"device": ""}, {"device": 7}):
        with pytest.raises(InvalidName) as refusal:
            readings.bind(**wrong)
        assert refusal.value.where.startswith(__file__)


@virtual
async def test_not_open() -> None:
    a = app()
    for attempt in (a.publish(placed, Order("1")), a.publish_many([placed(Order("1"))]), a.request(quotes, Order("1"))):
        with pytest.raises(NotOpen, match="async with") as refusal:
            await attempt
        assert refusal.value.where.startswith(__file__)
    with pytest.raises(NotOpen):
        a.bus()
    async with a.connect():
        await a.publish(placed, Order("1"))
    with pytest.raises(NotOpen):
        await a.publish(placed, Order("1"))


@virtual
async def test_unknown_buses_and_groups_while_open() -> None:
    a = app(devices="memory://")
    a.on(placed)(bill)
    async with a:
        with pytest.raises(InvalidName, match="no bus 'device'") as refusal:
            await a.publish(Topic("x", bus="device"), {})
        assert "'devices'" in refusal.value.mend
        with pytest.raises(InvalidName):
            a.bus("device")
        with pytest.raises(NotFound) as missing:
            a.pause("shop.bil")
        assert "'shop.bill'" in missing.value.mend


@virtual
async def test_opened_twice() -> None:
    a = app()
    async with a.connect():
        with pytest.raises(NotOpen, match="already open"):
            await a.__aenter__()
        await a.publish(placed, Order("1"))
    async with a.connect():
        pass


def test_an_app_without_handlers() -> None:
    with pytest.raises(NothingToRun, match="no handlers") as refusal:
        app().run()
    assert "@app.on" in refusal.value.mend


@pytest.mark.parametrize(
    ("url", "what", "mend"),
    [
        ("memry://", "memry://", "'memory'"),
        ("x-unknown://", "x-unknown://", ""),
        ("memory://?leas=3s", "'leas'", "'lease'"),
        ("memory://?lease=soon", "soon", ""),
    ],
)
@virtual
async def test_urls_nobody_understands(url: str, what: str, mend: str) -> None:
    with pytest.raises(InvalidURL) as refusal:
        async with App("shop", url).connect():
            pass
    assert what in refusal.value.what
    assert mend in refusal.value.mend


@virtual
async def test_which_url_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """``use`` (what ``--url`` does) beats the environment beats the code, for each bus by its own name."""

    def names(a: App) -> list[str]:
        return [a._bus(name).options.name for name in ("", "devices")]  # type: ignore[attr-defined]

    def declared() -> App:
        return App("shop", "memory://code", devices="memory://code-devices")

    async with declared().connect() as a:
        assert names(a) == ["code", "code-devices"]
    monkeypatch.setenv("TIDINGS_URL", "memory://env")
    monkeypatch.setenv("TIDINGS_URL_DEVICES", "memory://env-devices")
    async with declared().connect() as a:
        assert names(a) == ["env", "env-devices"]
    used = declared()
    used.use("memory://used")
    async with used.connect() as a:
        assert names(a) == ["used", "env-devices"]
    monkeypatch.setenv("TIDINGS_URL", "shop.db")
    with pytest.raises(InvalidURL):
        async with declared().connect():
            pass


async def test_the_default_is_a_file_named_after_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with App("shop").connect() as a:
        await a.publish(placed, Order("1"))
    assert (tmp_path / "shop.db").exists()
