"""The synchronous client, for code without an event loop: Django, Flask, scripts.

Theory of operation. A client has an app connected on an event loop of its own, in a thread of its own: its *link*. A
*call* hands its work to that loop and waits; so what many threads publish at the same time is committed together. The
first call makes the link. It ends, drained, with ``close()``, at the interpreter's exit, and before every ``fork()``:
parent and child make another one when they next need it, so neither ever holds a connection of the other.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - at a fork its lock must be taken after our hook, which needs it
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from copy import copy
from queue import SimpleQueue
from threading import RLock, Thread, main_thread
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet

from .app import App
from .channels import Service, Topic, drafted
from .kernel.errors import Duration, InvalidOption, NotOpen, RequestTimeout, TidingsError, UsageError, caller
from .kernel.message import Message, seconds
from .kernel.transport import Options
from .urls import options_for

if TYPE_CHECKING:
    from typing_extensions import TypeForm, Unpack

    from .channels import Meta

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

Work = Callable[[App], Coroutine[Any, Any, Any]]

AT_FORK, AT_EXIT = 1.0, 5.0  # seconds that running calls get to end
AGAIN = "make another one: tidings.connect(...)"
ENDED = object()


def connect(bus: str | Options | App | None = None, /, *, name: str = "client") -> Client:
    """A client of a bus, for code without an event loop::

        with tidings.connect("sqlite:///shop.db") as bus:
            bus.publish(placed, Order(1))

    ``bus``: as in ``App``, and as there ``TIDINGS_URL`` beats it; or an app, for its name and all its buses. ``name``:
    the ``source`` of messages. ``with`` opens the bus at once; else the first call does, and ``close()``, or the end of
    the process, closes it. Raises ``InvalidURL``, ``InvalidOption`` when nothing names a bus.
    """
    if isinstance(bus, App):
        return Client(bus)
    chosen = os.environ.get("TIDINGS_URL") or bus
    if chosen is None:
        mend = "tidings.connect('sqlite:///shop.db'), or export TIDINGS_URL=sqlite:////absolute/path/shop.db"
        raise InvalidOption("which bus?", why="neither connect() nor TIDINGS_URL names one", mend=mend)
    app = App(name)
    app.use(options_for(chosen) if isinstance(chosen, str) else chosen)
    return Client(app)


class Client:
    """A connection to a bus, shared by all threads of a process. Made by ``connect``.

    It may be made before ``fork()``: parent and child then have a connection each. A fork waits up to a second for what
    other threads have asked; on SQLite a child is refused (``BusForked``) while a request is still going on after that.
    Every method blocks, so none may be
    called where an event loop runs: there they raise ``UsageError``. Other errors are those of ``App``.
    """

    def __init__(self, app: App) -> None:
        self._app, self._closed = app, False
        self._link: _Link | None = None
        with _making:
            _clients.add(self)

    def __enter__(self) -> Client:
        self._begun(_Call(lambda app: asyncio.sleep(0))).next()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._link is not None:
            self._link.stop(cancel=True)

    def close(self) -> None:
        """Wait for what is being published, end requests with ``NotOpen``, and close the bus."""
        with _making:
            self._closed, link, self._link = True, self._link, None
        if link is not None:
            link.stop(cancel=True)
            link.thread.join()
            if link.failure is not None:
                raise _own(link.failure)

    @overload
    def publish(self, topic: Topic[T], data: T, /, **meta: Unpack[Meta]) -> None: ...
    @overload
    def publish(self, message: Message[Any], /) -> None: ...
    def publish(self, topic: Any, data: Any = None, /, **meta: Any) -> None:
        """``App.publish``: durable, as far as the bus can, when this returns."""
        draft = drafted(topic, data, meta)
        self._begun(_Call(lambda app: app.publish(draft))).next()

    def publish_many(self, messages: Iterable[Message[Any]], /) -> None:
        """``App.publish_many``: many at once, several times faster than one by one."""
        drafts = list(messages)
        self._begun(_Call(lambda app: app.publish_many(drafts))).next()

    @overload
    def request(self, service: Service[Q, R], data: Q, /, *, timeout: Duration = ...) -> R: ...
    @overload
    def request(self, name: str, data: object, reply: TypeForm[R], /, *, timeout: Duration = ...) -> R: ...
    def request(self, service: Any, data: Any, reply: Any = Any, /, *, timeout: Duration = 30.0) -> Any:
        """``App.request``. ``timeout`` is for all that it takes, opening the bus too."""
        call = _Call(lambda app: app.request(service, data, reply, timeout=timeout), service, timeout)
        return self._begun(call).next()

    @overload
    def request_stream(self, service: Service[Q, R], data: Q, /, *, timeout: Duration = ...) -> Iterator[R]: ...
    @overload
    def request_stream(
        self, name: str, data: object, reply: TypeForm[R], /, *, timeout: Duration = ...
    ) -> Iterator[R]: ...
    def request_stream(self, service: Any, data: Any, reply: Any = Any, /, *, timeout: Duration = 30.0) -> Any:
        """``App.request_stream``. The request is made when its first reply is asked for."""

        async def ask(app: App) -> Any:
            async for item in app.request_stream(service, data, reply, timeout=timeout):
                call.told.put((item, None))
            return ENDED

        call = _Call(ask, service, timeout)  # a name that `ask` knows before it begins
        self._begun(call)
        try:
            while (item := call.next()) is not ENDED:
                yield item
        finally:
            call.cancel()

    def _begun(self, call: _Call) -> _Call:
        if asyncio._get_running_loop() is not None:
            mend = "`async with app.connect():`, then await app.publish(...); or call this in a thread"
            raise UsageError("a synchronous client would block the event loop that runs here", mend=mend)
        while (link := self._link) is None or not link.begin(call):
            with _making:  # the first call, or one after a fork
                if self._closed:
                    raise NotOpen("this client is closed", mend=AGAIN)
                if self._link is None or not self._link.accepting:
                    self._link = _Link(self._app)
        return call


class _Link:
    """An app connected on a loop of its own, in a thread of its own."""

    def __init__(self, app: App) -> None:
        self.app = App(app.name)  # a copy: an app is open only once
        self.app.urls, self.app._used = dict(app.urls), set(app._used)
        self.pid, self.loop, self.stopping = os.getpid(), asyncio.new_event_loop(), asyncio.Event()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self.calls, self.lock, self.accepting = set[_Call](), RLock(), True
        self.failure: BaseException | None = None  # of closing
        self.thread = Thread(target=self._run, name=f"tidings {app.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._live())
        except BaseException as error:
            self.failure = error

    async def _live(self) -> None:
        try:
            async with self.app.connect():
                self.opened.set_result(None)
                await self.stopping.wait()
                await self._drain()
        except BaseException as error:
            if self.opened.done():
                raise
            with self.lock:
                self.accepting = False
            self.opened.set_exception(error)
            self.opened.exception()  # told, even if all who wait for it have given up
            await asyncio.sleep(0)  # calls that were taken begin
            await self._drain()

    async def _drain(self) -> None:
        while self.calls:
            await asyncio.wait([call.task for call in self.calls])

    def begin(self, call: _Call) -> bool:
        """Take a call; false when it takes no more."""
        call.link = self
        return self._post(call.begin)

    def stop(self, *, cancel: bool) -> None:
        """Take no more calls, and end when those that run have; ``cancel``: requests at once."""
        self._post(self._stop, cancel, last=True)

    def _post(self, function: Callable[..., None], *args: Any, last: bool = False) -> bool:
        with self.lock:
            if accepting := self.accepting:
                self.accepting = not last
                self.loop.call_soon_threadsafe(function, *args)
            return accepting

    def _stop(self, cancel: bool) -> None:
        self.stopping.set()
        for call in self.calls if cancel else ():
            call.cancel()


class _Call:
    """Work on a link, and what its thread is told of it. A request has a deadline, from the moment it is made."""

    link: _Link
    task: asyncio.Task[Any]

    def __init__(self, work: Work, service: Any = None, timeout: Duration | None = None) -> None:
        self.work, self.name = work, service.name if isinstance(service, Service) else service
        self.timeout = None if timeout is None else seconds(timeout, "timeout")
        self.made = time.monotonic()
        self.told: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def begin(self) -> None:
        self.task = self.link.loop.create_task(self._work())
        self.link.calls.add(self)
        self.task.add_done_callback(self._done)

    async def _work(self) -> Any:
        try:
            async with asyncio.timeout(self.timeout and self.timeout - (time.monotonic() - self.made)):
                await asyncio.shield(self.link.opened)
                return await self.work(self.link.app)
        except TimeoutError:
            if self.timeout is None:
                raise
            raise RequestTimeout(f"no reply from {self.name} within {self.timeout:g} s") from None

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.link.calls.discard(self)
        if not task.cancelled():
            error = task.exception()
            self.told.put((None, error) if error is not None else (task.result(), None))
        elif main_thread().is_alive():  # else it is a daemon thread that waits, and will end here
            self.told.put((None, NotOpen("this client was closed", mend=AGAIN)))

    def next(self) -> Any:
        """What it is told next. What is raised in this thread meanwhile, as by Ctrl-C, ends a request."""
        if self.link.pid != os.getpid():
            raise NotOpen("these replies go to the process that asked for them", mend="ask again, after fork()")
        try:
            result, error = self.told.get()
        except BaseException:
            self.cancel()
            raise
        if error is not None:
            raise _own(error) from error.__cause__
        return result

    def cancel(self) -> None:
        """End a request. What is being published goes on: its fate would not be known."""
        if self.timeout is not None:
            with suppress(RuntimeError):  # its loop has ended, and so has it
                self.link.loop.call_soon_threadsafe(lambda: self.task.cancel())


def _own(error: BaseException) -> BaseException:
    """An error of the loop's as this thread's: several may be told of the same one, each at its own line."""
    if not isinstance(error, TidingsError):
        return error
    own = copy(error)
    own.where = own.where or caller()
    return own.with_traceback(error.__traceback__)


# -- all clients of a process

_clients = WeakSet[Client]()
_making = RLock()  # held while a link is made, and during a fork
_left: list[_Link] = []  # running at a fork: a child keeps what is its parent's, for ending it would do harm


def _end_all(patience: float, *, cancel: bool) -> None:
    deadline, links = time.monotonic() + patience, list[_Link]()
    for client in list(_clients):
        if (link := client._link) is not None:
            client._link = None
            links.append(link)
            link.stop(cancel=cancel)
    for link in links:
        link.thread.join(max(0.0, deadline - time.monotonic()))
    _left.extend(link for link in links if link.thread.is_alive())


def _before_fork() -> None:
    _making.acquire()
    _end_all(AT_FORK, cancel=False)


atexit.register(_end_all, AT_EXIT, cancel=True)
os.register_at_fork(before=_before_fork, after_in_parent=_making.release, after_in_child=_making.release)
