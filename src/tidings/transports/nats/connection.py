"""The NATS client, kept alive: what it hears, what it is asked, and when it is lost.

The client reconnects by itself, and gives up for ever on any error that the server states; then another takes its
place. What was sent and has no answer when the connection is lost gets none: the caller sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any

from tidings.kernel.errors import BusError, BusUnavailable
from tidings.kernel.message import new_id
from tidings.kernel.transport import Event

from . import CONNECT, MENDS
from .frames import Batch, Came, Frame, Refused

Answer = Any  # a message of the client, a ``Refused``, or None

ANSWER, AGAIN = 5.0, 0.1  # seconds: for an answer, between tries
TOLD = re.compile("(?i:authorization)|SSL")  # says more than that a connection ended
PENDING = 8 * 1024 * 1024  # bytes that may wait to be written


class Ear:
    """A core subscription that outlives its client; ``raw`` hears before the client has parsed anything."""

    def __init__(
        self, subject: str, queue: str, hear: Callable[[Any], Awaitable[None]], raw: Callable[..., None] | None = None
    ) -> None:
        self.subject, self.queue, self.hear, self.raw = subject, queue, hear, raw
        self.sub: Any = None

    async def attach(self, client: Any) -> None:
        self.sub = await client.subscribe(self.subject, queue=self.queue, cb=self.hear)
        self.sub.raw = self.raw


class Pull:
    """What one member asks of one durable consumer, and what has come."""

    def __init__(self, connection: Connection, root: str, wake: Callable[[], None]) -> None:
        self.connection, self.root, self.wake = connection, root, wake
        self.inbox, self.numbers = f"_INBOX.{new_id().replace('-', '')}.", count(1)
        self.ear = Ear(self.inbox + "*", "", self._heard, self._hear)
        self.name = self.status = ""  # the consumer; how what was asked has ended
        self.more = True  # as far as is known, there is
        self.arrived: list[Came] = []
        self.left, self.until, self.since = 0, 0.0, 0.0  # asked for, until when; ``arrived`` left the server after this

    @property
    def open(self) -> bool:
        return self.left > 0 and self.connection.loop.time() < self.until

    async def ask(self, name: str, limit: int, wait: float = 0.0) -> None:
        """For ``limit``: of what is there, or the first that come within ``wait`` seconds."""
        self.left, self.status, self.until = limit, "", self.connection.loop.time() + wait + ANSWER
        self.inboxed = f"{self.inbox}{next(self.numbers)}".encode()
        told = {"batch": limit} | ({"expires": int(wait * 1e9)} if wait else {"no_wait": True})
        frame = Frame(self.root + name, b"", json.dumps(told).encode())
        try:
            await self.connection.write(frame.to(self.inboxed.decode()))
        except BusUnavailable:
            self.left = 0
            await asyncio.sleep(AGAIN)

    def take(self, limit: int) -> list[Came]:
        came, self.arrived = self.arrived[:limit], self.arrived[limit:]
        if came:
            self.more = self.more or len(came) > 1 or not came[-1].reply.endswith(b".0")
        return came

    def _hear(self, subject: bytes, reply: bytes, body: bytes, head: Any) -> None:
        if reply:
            if not self.arrived:
                self.since = self.connection.before
            self.arrived.append(Came(subject, reply, body, head))
            self.left -= 1
            if self.left <= 0:
                self.wake()
        elif subject == self.inboxed and head and head[9:12] != b"100":
            self.status, self.left = head[9:12].decode("latin-1"), 0
            self.wake()

    async def _heard(self, msg: Any) -> None:
        head = msg.headers if msg.reply else f"NATS/1.0 {status(msg)}".encode()
        self._hear(msg.subject.encode(), msg.reply.encode(), msg.data, head)


class Connection:
    """The client, kept alive: what it hears, what it is asked, and when it is lost."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, told: Mapping[str, Any], where: str, wait: float) -> None:
        self.told, self.where, self.wait = told, where, wait
        self.patience = max(2 * ANSWER, CONNECT * (len(told["servers"]) + 1))  # each may be the only one that answers
        self.client: Any = None
        self.closing = self.reviving = False
        self.before = 0.0  # what arrives now left the server after this
        self.notify: Callable[[Event], None] = lambda event: None
        self.numbers = count(1)
        self.batches: dict[str, Batch] = {}
        self.ears: dict[Ear, None] = {}
        self.troubles: list[BaseException] = []
        self.wakers: dict[Any, Callable[[], None]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()

    @property
    def server(self) -> str:
        """The identity of the server we are, or were last, connected to: another one after each of its starts."""
        return str(self.client._server_info.get("server_id", "")) if self.client is not None else ""

    async def connect(self) -> None:
        """Raises ``BusUnavailable`` when no server would have us."""
        self.loop, self.ready, self.failed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self.inbox = f"_INBOX.{new_id().replace('-', '')}."
        self.ears[Ear(self.inbox + ">", "", self._answered)] = None
        connecting = asyncio.ensure_future(self._connect())
        failing = asyncio.ensure_future(self.failed.wait())
        await asyncio.wait({connecting, failing}, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        if connecting.done() and not connecting.exception():
            return
        connecting.cancel()
        await asyncio.wait({connecting})
        trouble = None if connecting.cancelled() else connecting.exception()
        await self.disconnect()
        reasons = [*self.troubles, *([trouble] if trouble else ())] or [TimeoutError("no answer")]
        why = next((text for each in reasons if TOLD.search(text := text_of(each))), text_of(reasons[-1]))
        mend = next((mend for words, mend in MENDS.items() if re.search(words, why)), "start it, or mend the URL")
        raise BusUnavailable(f"no NATS server at {self.where} would have us", why=why, mend=mend) from None

    async def _connect(self) -> None:
        def next_server(servers: Sequence[Any], info: Any) -> tuple[Any, float]:
            chosen = min(servers, key=lambda server: server.reconnects)
            return chosen, min(5.0, 0.05 * 2 ** min(chosen.reconnects, 7))

        self.client = client = _client()()
        await client.connect(
            name="tidings",
            error_cb=self._troubled,
            disconnected_cb=self._lost,
            reconnected_cb=self._back,
            closed_cb=self._closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            reconnect_to_server_handler=next_server,
            ping_interval=5,
            pending_size=PENDING,
            **self.told,
        )
        for ear in tuple(self.ears):
            await ear.attach(client)
        self._wake(True)

    async def _drop(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), ANSWER)

    async def disconnect(self) -> None:
        """For good."""
        self.closing = True
        for task in self.tasks:
            task.cancel()
        await self._drop()
        self._wake(False)

    # -- what the client tells

    async def _troubled(self, error: Exception) -> None:
        self.troubles = [*self.troubles[-9:], error]
        told = [each for each in self.troubles if not isinstance(each, ConnectionResetError | BrokenPipeError)]
        if len(told) >= len(self.told["servers"]):  # the end may have cut off the reason: a second try tells it
            self.failed.set()
        text = str(error).lower()
        if "permissions violation for publish" in text:
            refused = Refused(BusError("NATS does not let us publish", why=str(error), mend="grant the right"))
            for batch in self.batches.values():
                for index, subject in enumerate(batch.subjects):
                    if f'"{subject.lower()}"' in text:
                        batch.answer(index, refused)

    async def _lost(self) -> None:
        if not self.closing and self.ready.is_set():
            self.ready.clear()
            if self.client is not None:  # no late acknowledgement shall follow when it is back
                self.client._pending.clear()
                self.client._pending_data_size = 0
            self._wake(False)
            self.notify(Event("lost", 1, f"NATS at {self.where}"))

    async def _back(self) -> None:
        self._wake(True)
        self.notify(Event("connected"))

    def _wake(self, ready: bool) -> None:
        if ready:
            self.ready.set()
        else:
            for batch in self.batches.values():
                batch.end()
        for wake in tuple(self.wakers.values()):
            wake()

    async def _closed(self) -> None:
        if not self.closing and not self.reviving:
            self.run(self._revive())

    async def _revive(self) -> None:
        self.reviving, pause = True, AGAIN
        await self._lost()
        while not self.ready.is_set():
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)
            connecting = asyncio.ensure_future(self._connect())
            done, _ = await asyncio.wait({connecting}, timeout=self.patience)
            if not done or connecting.exception():
                connecting.cancel()
                await self._drop()
        self.reviving = False
        await self._back()

    def run(self, work: Any) -> asyncio.Task[Any]:
        """In the background, for as long as the connection is open."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # -- what goes out, and what comes back

    async def listen(self, ear: Ear) -> Ear:
        self.ears[ear] = None
        if self.client is not None:
            await ear.attach(self.client)
        return ear

    async def hush(self, ear: Ear) -> None:
        """Hear no more; what the server had sent by now is heard first."""
        self.ears.pop(ear, None)
        if ear.sub is not None and self.client is not None:
            try:
                await asyncio.wait_for(ear.sub.drain(), ANSWER)
            except Exception:
                ear.sub._conn._remove_sub(ear.sub._id)

    async def write(self, data: bytes) -> None:
        """Raises ``BusUnavailable``."""
        if self.client is None or self.client.is_closed:
            raise BusUnavailable(f"NATS at {self.where} is not connected")
        await self.client._send_command(data)  # many commands at once; ``publish`` takes one, at ten times the cost
        await self.client._flush_pending()

    async def exchange(self, frames: Sequence[Frame], before: bytes = b"", within: float = ANSWER) -> list[Answer]:
        """Each frame's answer; None where none came in time, or before the connection was lost."""
        number = str(next(self.numbers))
        batch = self.batches[number] = Batch([frame.subject for frame in frames], self.loop.create_future())
        reply = f"{self.inbox}{number}."
        try:
            await self.write(before + b"".join([frame.to(f"{reply}{i}") for i, frame in enumerate(frames)]))
            async with asyncio.timeout(within):
                await batch.done
        except (TimeoutError, OSError):
            self.run(self.probe())
        except BusUnavailable:
            pass
        finally:
            del self.batches[number]
        return batch.answers

    async def only(self, frame: Frame) -> Answer:
        """The answer to one frame, sent until it comes. Raises ``BusUnavailable``."""
        deadline = self.loop.time() + self.wait
        while await self.up(deadline):
            (answer,) = await self.exchange([frame])
            if answer is not None and not isinstance(answer, Refused) and status(answer) != "503":
                return answer
            await asyncio.sleep(AGAIN)
        raise BusUnavailable(f"NATS at {self.where} does not answer")

    async def read(self, subject: str, question: Mapping[str, Any]) -> list[Any]:
        """All the messages that answer a question, up to the status that ends them."""
        found, done = list[Any](), self.loop.create_future()

        async def hear(msg: Any) -> None:
            if msg.data or not status(msg):
                found.append(msg)
            elif not done.done():
                done.set_result(None)

        ear = await self.listen(Ear(inbox := f"{self.inbox}r{next(self.numbers)}", "", hear))
        try:
            await self.write(Frame(subject, b"", json.dumps(question).encode()).to(inbox))
            async with asyncio.timeout(ANSWER):
                await done
        except TimeoutError as error:
            raise BusUnavailable(f"NATS at {self.where} does not say what it stores") from error
        finally:
            await self.hush(ear)
        return found

    async def survey(self, subject: str, within: float) -> list[bytes]:
        """What all who listen there say in so many seconds."""
        found = list[bytes]()

        async def hear(msg: Any) -> None:
            if msg.data:
                found.append(msg.data)

        ear = await self.listen(Ear(inbox := f"{self.inbox}s{next(self.numbers)}", "", hear))
        await self.write(Frame(subject, b"", b"").to(inbox))
        await asyncio.sleep(within)
        await self.hush(ear)
        return found

    async def _answered(self, msg: Any) -> None:
        number, _, rest = msg.subject[len(self.inbox) :].partition(".")
        if batch := self.batches.get(number):
            batch.answer(int(rest), msg)
        elif number == "q":
            await self.replied(rest, msg)

    async def replied(self, asked: str, msg: Any) -> None:
        """A request's answer came to the inbox: nobody listens, or somebody knows nothing of us."""

    async def probe(self) -> None:
        """A connection that answers no ping is as good as lost, whatever the operating system thinks."""
        client = self.client
        try:
            if client is not None and client.is_connected:
                await client.flush(2)
        except Exception:
            await client.force_reconnect()

    async def up(self, deadline: float) -> bool:
        """Whether there is a connection, perhaps after waiting for it."""
        if not self.ready.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self.ready.wait()
        return self.ready.is_set() and not self.closing


@cache
def _client() -> Any:
    """The class of a client that hands over unparsed what is wanted so: parsing costs it more than all that we do.

    Its PING waits behind what is to be written. Written past it, the answer would come before an UNSUB is read: what
    the server sends meanwhile would be nobody's for as long as ``ack_wait``. Nor does it speak in the clear where TLS
    is wanted, whatever the server says.
    """
    from nats.aio.client import Client

    class Direct(Client):
        async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
            if initial_connection and "tls" in self.options and not info.get("tls_required"):
                if not info.get("tls_available"):
                    raise ConnectionAbortedError("it offers no TLS, and was told nothing")
                info["tls_required"] = True  # else the client would go on in the clear
            await super()._process_info(info, initial_connection)

        async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
            self._pongs.append(future or asyncio.Future())
            if self.is_connected:  # else it would be sent to the next server, which answers only its own
                await self._send_command(b"PING\r\n")
                await self._flush_pending()

        async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
            if (hear := getattr(self._subs.get(sid), "raw", None)) is None:
                await super()._process_msg(sid, subject, reply, data, headers)
            else:
                hear(subject, reply, data, headers)

    return Direct


def text_of(error: BaseException) -> str:
    return str(error) or type(error).__name__


def status(answer: Answer) -> str:
    """``"503"`` and the like; "" for a message."""
    return str((answer.headers or {}).get("Status", "")) if not answer.data else ""
