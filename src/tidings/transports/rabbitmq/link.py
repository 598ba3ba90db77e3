"""The two connections of a process to RabbitMQ, kept for ever, and what a bus needs there: made when it is missing."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import time as wall
from typing import TYPE_CHECKING, Any

import aiormq
from aiormq.exceptions import AMQPError, AuthenticationError, InvalidFrameError, ProbableAuthenticationError
from pamqp.commands import Exchange, Queue

from tidings.kernel import errors
from tidings.kernel.message import Message, seconds
from tidings.kernel.topics import DEAD, GROUP, INTERNAL
from tidings.kernel.transport import Event

from .channel import CLOSING, Channel, ChannelLost, Publication
from .content import LEVEL, LONGEST_TTL, RESERVED, properties, refused

if TYPE_CHECKING:
    from . import RabbitMQ

log = logging.getLogger("tidings")

FIRST, LONGEST = 0.05, 5.0  # seconds between tries to connect
CONNECTING, MARKED = 10.0, 1.0  # seconds; the second: until a suspect that nobody holds comes back
SAFE = {"dead_letter_strategy": "at-least-once", "overflow": "reject-publish"}  # else an expired message may be lost


class Link:
    """Both connections, and the channels that all share. ``restore`` gives consumers their channels back."""

    def __init__(self, options: RabbitMQ, restore: Callable[[], Awaitable[None]]) -> None:
        self.options, self.restore, self.prefix = options, restore, options.namespace + "."
        self.exchange, self.reserved = options.exchange or options.namespace, self.prefix + "_"
        self.dead, self.registry = self.prefix + "_dead", self.prefix + "_groups"
        self.wait, self.unit = seconds(options.publish_wait), round(seconds(options.resolution) * 1000)
        self.notify: Callable[[Event], None] = lambda event: None
        self.client: Any = None  # consumes
        self.sender: Any = None  # publishes: the broker may block it
        self.publisher: Channel | None = None
        self.control: Channel | None = None
        self.up = asyncio.Event()
        self.controlling, self.making = asyncio.Lock(), asyncio.Lock()
        self.supervisor: asyncio.Task[None] | None = None
        self.ending = set[asyncio.Future[None]]()  # connections that are being closed
        self.levels = LONGEST_TTL // max(self.unit, 1)
        self.levels = self.levels.bit_length()  # of delay: none is longer than the broker's longest time to live
        self.level = -1  # the highest that is known to exist
        self.type, self.major = "topic", 3  # of the exchange; of the server's version

    # -- connecting

    async def open(self, notify: Callable[[Event], None]) -> None:
        self.notify = notify
        try:
            await self._connect()
        except BaseException:
            await self._hang_up(CLOSING)  # the loop may be closed next
            raise
        self.supervisor = asyncio.get_running_loop().create_task(self._supervise())
        self.up.set()
        notify(Event("connected"))

    async def _connect(self) -> None:
        """Both connections, their channels, and what every bus has; raises ``BusUnavailable``."""
        self.client = self.sender = self.control = None
        self.level = -1
        try:
            self.client = await self._dial()
            self.sender = await self._dial()
            self.major = int(str(self.client.server_properties.get("version", "3")).partition(".")[0])
            self.publisher = await Channel(self.sender).open(confirms=True)
            await self._provision()
        except BaseException as error:
            await self._hang_up()
            if isinstance(error, ChannelLost):
                raise refused(error, f"the bus {self.options.namespace!r}") from None
            raise

    async def _dial(self) -> aiormq.Connection:
        options, reasons, said = self.options, list[str](), ""
        for url, (host, port) in zip(options.urls(), options.hosts, strict=True):
            connection = aiormq.Connection(url, context=options.context())
            try:
                async with asyncio.timeout(CONNECTING):
                    await connection.connect(client_properties={"product": "tidings"})
                return connection
            except (AuthenticationError, ProbableAuthenticationError) as error:
                what = f"RabbitMQ at {host}:{port} refuses the user {options.user!r}"
                raise errors.BusUnavailable(what, why=str(error), mend="user and password are in the URL") from None
            except (AMQPError, OSError, EOFError, TimeoutError, ssl.SSLError, RuntimeError) as error:
                reasons.append(f"{host}:{port}: {self._reason(error)}")
                said += self._reason(error).replace(host, "")  # whose name says nothing
        mend, why = "start it, or correct host, port and vhost of the URL", "; ".join(reasons)
        if "CERTIFICATE_VERIFY" in said:
            mend = "cafile= names the PEM file of who signed its certificate"
        elif any(word in said for word in ("reset", "pipe", "EOF", "SSL")):  # somebody is there
            tls = "no TLS, or a client certificate (certfile=, keyfile=)" if self.options.tls else "TLS (amqps://)"
            mend += f"; does it want {tls}?"
        raise errors.BusUnavailable("RabbitMQ cannot be reached", why=why, mend=mend)

    def _reason(self, error: BaseException) -> str:
        text = str(error) or type(error).__name__
        if isinstance(error, InvalidFrameError) and "OpenOk" in text:  # it does not say more
            return f"it has no vhost {self.options.vhost!r}, or none that the user {self.options.user!r} may use"
        return text

    async def _hang_up(self, patience: float = 0.0) -> None:
        """End both connections; one that is half open may take its time, or not even notice that it is told to."""
        for connection in (self.sender, self.client):
            if connection is not None:
                for channel in list(connection.channels.values()):
                    if isinstance(channel, Channel):
                        channel.fail(ChannelLost())
                self.ending.add(ending := asyncio.ensure_future(_ended(connection)))
                ending.add_done_callback(self.ending.discard)
        self.client = self.sender = None  # whoever opens a channel now is told at once
        if self.ending:
            await asyncio.wait(set(self.ending), timeout=patience)

    async def _supervise(self) -> None:
        """Notice that a connection is lost, and restore everything; for ever."""
        while True:
            over = [self.client.closing, self.sender.closing, self._publisher_lost()]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            self.up.clear()
            await self._hang_up()
            self.notify(Event("lost", detail="the connection to RabbitMQ"))
            wait = FIRST
            while not await self._restored():
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST)
            self.up.set()
            self.notify(Event("connected"))

    def _publisher_lost(self) -> asyncio.Future[None]:
        """The broker closes a channel that publishes what it refuses; what was on its way is unknown then."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert self.publisher is not None
        self.publisher.failed = lambda why: None if lost.done() else lost.set_result(None)
        if self.publisher.lost is not None:
            lost.set_result(None)
        return lost

    async def _restored(self) -> bool:
        try:
            await self._connect()
            await self.restore()
            return True
        except Exception as error:  # whatever it is: for ever
            log.warning("RabbitMQ is not back yet: %s", error)
            await self._hang_up()
            return False

    async def close(self) -> None:
        if self.supervisor is not None:
            self.supervisor.cancel()
            await asyncio.wait({self.supervisor})
        self.up.clear()
        await self._hang_up(CLOSING)

    async def ready(self) -> None:
        """Wait, but not for ever, until the broker can be told something; raises ``BusUnavailable``."""
        if self.supervisor is None:
            raise errors.BusUnavailable("this bus is not open")
        try:
            async with asyncio.timeout(self.wait):
                await self.up.wait()
                await self.sender.ready()
        except TimeoutError:
            what = f"RabbitMQ is not there for {self.wait:g} s"
            if self.up.is_set():
                what = f"RabbitMQ blocks publishers for {self.wait:g} s: it is short of memory or disk"
            raise errors.BusUnavailable(what, mend="nothing was sent: publish again when it is back") from None

    async def confirmed(self, publications: Sequence[Publication]) -> tuple[list[str | None], str]:
        """What became of each, and why that is not known (None) of some. Raises ``BusUnavailable`` if none was sent."""
        channel = self.publisher
        if channel is None or channel.lost is not None:
            raise errors.BusUnavailable("the connection to RabbitMQ was lost before anything was sent")
        batch = channel.publish(publications)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait):
                await batch.done
        return batch.outcomes, str(channel.lost) if channel.lost is not None else f"none came within {self.wait:g} s"

    # -- asking

    async def ask(self, method: Any, what: str = "") -> Any:
        """Do something on the channel for it; raises ``ChannelLost``, or an error that says ``what`` is refused."""
        try:
            async with self.controlling:
                if self.control is None or self.control.lost is not None:
                    self.control = await Channel(self.client).open()
                return await self.control.ask(method)  # alone: a refusal ends the channel, for all that were asked
        except ChannelLost as lost:
            if what:
                raise refused(lost, what) from None
            raise

    async def exists(self, method: Any) -> Any:
        """The answer to a passive declaration; None when there is no such thing."""
        try:
            return await self.ask(method)
        except ChannelLost as lost:
            if lost.code == 404:
                return None
            raise refused(lost, str(getattr(method, "queue", ""))) from None

    async def queue(self, name: str, **arguments: Any) -> None:
        """Declare a durable queue; its arguments with ``_`` for ``-`` and without ``x-``."""
        table = {"x-" + argument.replace("_", "-"): value for argument, value in arguments.items()}
        await self.ask(Queue.Declare(0, name, durable=True, arguments=table), f"queue {name!r}")

    async def bind(self, queue: str, exchange: str, key: str, **arguments: Any) -> None:
        method = Queue.Bind(0, queue, exchange, key, arguments=arguments)
        await self.ask(method, f"binding {queue!r} to {exchange!r}")

    async def unbind(self, queue: str, exchange: str, key: str) -> None:
        await self.ask(Queue.Unbind(0, queue, exchange, key), f"unbinding {queue!r} from {exchange!r}")

    async def _exchange(self, name: str, type: str, alternate: str = "") -> None:
        table: Any = {"alternate-exchange": alternate} if alternate else {}
        await self.ask(Exchange.Declare(0, name, type, durable=True, arguments=table), f"exchange {name!r}")

    async def _chain(self, destination: str, source: str, key: str) -> None:
        await self.ask(Exchange.Bind(0, destination, source, key), f"binding {destination!r} to {source!r}")

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """One process at a time makes things: one that finds a stream half made, and publishes, loses its channel."""
        name, until = self.prefix + "_lock", asyncio.get_running_loop().time() + self.wait
        async with self.making:
            while True:
                try:
                    await self.ask(Queue.Declare(0, name, exclusive=True))
                    break
                except ChannelLost as lost:
                    if lost.code != 405 or asyncio.get_running_loop().time() > until:
                        raise refused(lost, f"queue {name!r}") from None
                    await asyncio.sleep(FIRST)
            try:
                yield
            finally:
                with suppress(ChannelLost):
                    await self.ask(Queue.Delete(0, name))

    # -- making

    async def _provision(self) -> None:
        self.type = await self._exchange_type()
        if await self.exists(Exchange.Declare(0, self.reserved, passive=True)) is None:
            async with self.alone():
                for stream in (self.dead, self.registry):  # read up to its last message: so there shall be one
                    await self.queue(stream, queue_type="stream")
                    first = properties(Message(INTERNAL + "born", content_type="", time=wall()), {})
                    await self.confirmed([Publication("", stream, first, b"")])
                    if self.publisher is not None and self.publisher.lost is not None:
                        raise refused(self.publisher.lost, f"what is sent to stream {stream!r}")
                await self._exchange(self.reserved, "topic")
        await self.bind(self.dead, self.reserved, DEAD + "#")

    async def _exchange_type(self) -> str:
        """Declare the exchange of the users' topics, or take theirs as it is; its type."""
        try:
            await self._exchange(self.exchange, "topic")
            return "topic"
        except errors.InvalidOption as error:
            if not self.options.exchange:
                raise
            found = re.search(r"arg 'type' .*current is '?([\w-]+)", error.why)
            if found and found[1] not in ("topic", "direct"):
                what = f"exchange {self.exchange!r} has no topics: its type is {found[1]}"
                mend = "bind a queue of your own to it, and name that: queues=group:queue"
                raise errors.InvalidOption(what, mend=mend) from None
            return found[1] if found else "topic"

    async def reach(self, highest: int) -> None:
        """Make what delays need, up to the level ``highest``, where it is missing."""
        name = f"{self.prefix}_delay.{highest}"
        if await self.exists(Exchange.Declare(0, name, passive=True)) is None:
            async with self.alone():
                await self._delays(highest)
        await self._stop(highest)  # its exchange is there a moment before its queue is bound
        self.level = max(self.level, highest)

    async def _delays(self, highest: int) -> None:
        due, late, sink = (self.prefix + name for name in ("_due", "_late", "_sink"))
        await self.queue(sink, queue_type="classic", max_length=0)  # what no queue takes would be tried for ever
        await self._exchange(late, "fanout")
        await self._chain(self.exchange, late, "")
        await self.bind(sink, late, "")
        await self._exchange(due, "topic", late)
        for reserved in RESERVED:
            await self._chain(self.reserved, due, reserved + "#")
            await self.bind(sink, due, reserved + "#")
        below = due
        for n in range(highest + 1):
            name = f"{self.prefix}_delay.{n}"
            expires = {"message_ttl": self.unit << n, "dead_letter_exchange": below}
            await self.queue(name, queue_type="quorum", **expires, **SAFE)
            await self._exchange(name, "headers", below)
            await self._stop(n)
            below = name

    async def _stop(self, n: int) -> None:
        name = f"{self.prefix}_delay.{n}"
        await self.bind(name, name, "", **{"x-match": "all", f"{LEVEL}{n}": "1"})

    async def suspects(self, group: str) -> str:
        """The queue where a group's suspects are held while they run."""
        queue, back = f"{self.prefix}_suspect.{group.replace('%', '+')}", GROUP + group
        expires = {"message_ttl": int(MARKED * 1000), "dead_letter_exchange": self.reserved}
        await self.queue(queue, queue_type="quorum", dead_letter_routing_key=back, **expires, **SAFE)
        return queue


async def _ended(connection: aiormq.Connection) -> None:
    with suppress(Exception):
        await connection.close()
