"""Connections: where the server is, one connection shared by many callers, and one that listens.

The protocol is hiredis on a plain asyncio connection. redis-py's own connections have time limits and retries that end
a blocking read which has only nothing to read, and repeat what may have been done; and they await each answer, of which
a thousand published messages have a thousand. The one limit here is on how long an answer may take.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import hiredis
from redis import exceptions as refusals
from redis.crc import key_slot
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError

from tidings.kernel import errors
from tidings.transports._tls import secured

from . import Redis

HANDSHAKE, ANSWER = 5.0, 10.0  # seconds for connecting, and for any one answer: beyond, the connection is given up

OUT_OF_MEMORY, NO_SCRIPT = refusals.OutOfMemoryError, refusals.NoScriptError
DENIED = (refusals.AuthenticationError, refusals.NoPermissionError)
KINDS: dict[str, type[RedisError]] = {
    "OOM": OUT_OF_MEMORY,
    "NOSCRIPT": NO_SCRIPT,
    "WRONGPASS": refusals.AuthenticationError,
    "NOAUTH": refusals.AuthenticationError,
    "NOPERM": refusals.NoPermissionError,
    "READONLY": refusals.ReadOnlyError,
    "MASTERDOWN": refusals.MasterDownError,
    "LOADING": refusals.BusyLoadingError,
    **dict.fromkeys(("MOVED", "ASK", "TRYAGAIN"), refusals.TryAgainError),
}
# Not done: look again where the server is. Not done: it may be done soon.
ELSEWHERE = (refusals.ReadOnlyError, refusals.MasterDownError, refusals.TryAgainError, refusals.BusyLoadingError)
NOT_NOW = ("BUSY ", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "UNKILLABLE")

NOTHING = object()

pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
Read = Callable[[Any], Any]
L = TypeVar("L", bound="Link")


def refusal(text: str) -> RedisError:
    """A server's error reply."""
    code = text.partition(" ")[0]
    denied = "invalid password" in text or "wrong number of arguments for 'auth'" in text
    kind = refusals.AuthenticationError if denied else KINDS.get(code, refusals.ResponseError)
    return kind(text)


@cache
def script(name: str) -> str:
    """A script by its file's name, with what all begin with."""
    folder = Path(__file__).parent
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()


class Server:
    """Makes connections to the server that has the bus: found by Sentinel or in a cluster each time anew."""

    def __init__(self, options: Redis, tag: str) -> None:
        self.options, self.tag, self.shown = options, tag, options.shown
        self.location = options.location()
        self.kind = self.location.scheme.partition("+")[2]
        self.tls: ssl.SSLContext | None = None

    def _context(self) -> ssl.SSLContext | None:
        """For TLS. Raises ``BusUnavailable`` when a file is not there or is none."""
        options = self.options
        if options.tls and self.tls is None:
            files = ("ca", options.ca), ("cert", options.cert), ("key", options.key)
            self.tls = secured(f"Redis at {self.shown}", *files)
            if not options.verify:
                self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        return self.tls

    async def link(self, name: str) -> Link:
        """A connection, authenticated. Raises ``BusUnavailable``, saying why."""
        return await self.connect(Link, name)

    async def connect(self, make: Callable[[], L], name: str) -> L:
        """The same, as the kind of link that ``make`` makes."""
        failed: BaseException | None = None
        for host, port in await self._hosts():
            try:
                return await self._connect(make, host, port, self.options.db, name)
            except (RedisError, OSError, TimeoutError) as error:
                failed = failed or error
        raise self.unavailable(failed)

    async def _connect(self, make: Callable[[], L], host: str, port: int, db: int, name: str) -> L:
        where, tls = self.location, self._context()
        async with asyncio.timeout(HANDSHAKE):
            loop = asyncio.get_running_loop()
            _, link = await loop.create_connection(make, host, port, ssl=tls)
            link.host, link.port = host, port
            try:
                if where.password or where.user:
                    await link.ask("AUTH", *([where.user] if where.user else []), where.password)
                if db:
                    await link.ask("SELECT", db)
                await link.ask("CLIENT", "SETNAME", name)
            except BaseException as error:
                link.end(error)
                raise
        return link

    def arguments(self, link: Link) -> dict[str, Any]:
        """What the native client needs to reach the same server."""
        where, options = self.location, self.options
        found: dict[str, Any] = {"host": link.host, "port": link.port, "db": options.db}
        found |= {"username": where.user or None, "password": where.password or None}
        if options.tls:
            files = {"ssl_ca_certs": options.ca, "ssl_certfile": options.cert, "ssl_keyfile": options.key}
            found |= {"ssl": True, **{name: path for name, path in files.items() if path}}
            found |= {} if options.verify else {"ssl_check_hostname": False, "ssl_cert_reqs": "none"}
        return found

    async def _hosts(self) -> list[tuple[str, int]]:
        hosts = list(self.location.hosts)
        if not self.kind:
            return hosts
        failed: BaseException | None = None
        for host, port in hosts:
            link: Link | None = None
            try:
                link = await (self._sentinel if self.kind == "sentinel" else self._node)(host, port)
                async with asyncio.timeout(HANDSHAKE):
                    return [await (self._primary(link) if self.kind == "sentinel" else self._owner(link))]
            except (RedisError, OSError, TimeoutError) as error:
                failed = failed or error
            finally:
                if link is not None:
                    link.end(NotConnected("done"))
        raise self.unavailable(failed)

    async def _sentinel(self, host: str, port: int) -> Link:
        """A Sentinel; it has users of its own."""
        options = self.options
        async with asyncio.timeout(HANDSHAKE):
            _, link = await asyncio.get_running_loop().create_connection(Link, host, port, ssl=self._context())
            if options.sentinel_password:
                user = [options.sentinel_user] if options.sentinel_user else []
                await link.ask("AUTH", *user, options.sentinel_password)
        return link

    async def _primary(self, link: Link) -> tuple[str, int]:
        found = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.options.primary)
        if found is None:
            raise NotConnected(f"the Sentinel knows no primary {self.options.primary!r}")
        return found[0].decode(), int(found[1])

    async def _node(self, host: str, port: int) -> Link:
        return await self._connect(Link, host, port, 0, "tidings-asks")

    async def _owner(self, link: Link) -> tuple[str, int]:
        """The primary of the slot that the bus's hash tag names."""
        slot = key_slot(self.tag.encode())
        for first, last, (owner, port, *_), *_ in await link.ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return (owner.decode() if owner else link.host), port
        raise NotConnected(f"no node of the cluster has slot {slot}")

    def unavailable(self, error: BaseException | None) -> errors.BusUnavailable:
        what, why, mend = f"Redis at {self.shown} cannot be reached", str(error) or type(error).__name__, ""
        if isinstance(error, errors.BusUnavailable):
            return error
        if isinstance(error, DENIED):
            what, mend = (
                f"Redis at {self.shown} refuses this user",
                "check user and password: redis://user:password@host",
            )
        elif isinstance(error, refusals.BusyLoadingError):
            what, mend = f"Redis at {self.shown} is loading its data", "wait"
        elif "CERTIFICATE_VERIFY" in why:
            mend = "ca= names the PEM file of who signed its certificate"
        elif not isinstance(error, refusals.ResponseError):
            mend = "is the server running there, and is the URL right?"
            if any(word in why for word in ("Timeout", "reset", "pipe", "closed", "SSL")):  # somebody may be there
                tls = "no TLS, or a client certificate (cert=, key=)" if self.options.tls else "TLS (rediss://)"
                mend += f" does it want {tls}?"
        return errors.BusUnavailable(what, why=why, mend=mend)


def translated(error: RedisError, shown: str) -> errors.BusError:
    """What the server said no to, as an error of ours."""
    why = str(error)
    if isinstance(error, OUT_OF_MEMORY):
        mend = "let consumers catch up, shorten retain=, or raise maxmemory"
        return errors.BusFull(f"Redis at {shown} is out of memory", why=f"{why}; what was accepted is safe", mend=mend)
    if isinstance(error, DENIED):
        return errors.BusUnavailable(
            f"Redis at {shown} forbids it", why=why, mend="the rights it needs are in the docs"
        )
    return errors.BusUnavailable(f"Redis at {shown} refuses", why=why)


class Asked:
    """A question on its way: ``left`` answers come before the one that counts; the first refusal counts more.

    ``read`` makes of the answer what is wanted: at once, while the garbage collector rests.
    """

    __slots__ = ("answer", "left", "read", "refused", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, left: int, read: Read | None) -> None:
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.since, self.left, self.read = loop.time(), left, read
        self.refused: RedisError | None = None


class Link(asyncio.Protocol):
    """One connection, shared by many callers: answers come in the order of the questions."""

    host, port = "", 0
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.parser = hiredis.Reader(protocolError=NotConnected, replyError=refusal, notEnoughData=NOTHING)
        self.waiting: deque[Asked] = deque()
        self.shas: dict[str, str] = {}
        self.ended: asyncio.Future[BaseException] = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data)
        collecting = gc.isenabled()
        gc.disable()  # a reply is thousands of lists, none of them garbage: looking costs a tenth of consuming
        try:
            while (answer := self.parser.gets()) is not NOTHING:
                self.answered(answer)
        except (RedisError, IndexError) as error:
            self.end(error)
        finally:
            if collecting:
                gc.enable()

    def connection_lost(self, error: BaseException | None) -> None:
        self.end(error or NotConnected("the server closed the connection"))

    def answered(self, answer: Any) -> None:
        asked = self.waiting[0]
        if asked.left:
            asked.left -= 1
            if isinstance(answer, RedisError):
                asked.refused = asked.refused or answer
            return
        self.waiting.popleft()
        if not asked.answer.done():
            refused = asked.refused or (answer if isinstance(answer, RedisError) else None)
            if refused is None:
                asked.answer.set_result(answer if asked.read is None else asked.read(answer))
            else:
                asked.answer.set_exception(refused)

    async def ask(self, *command: Any, read: Read | None = None) -> Any:
        """The answer, as ``read``. Raises what the server refuses; ``NotConnected`` when no answer came: perhaps it
        was done.
        """
        return await self._send(pack(command), 0, read)

    async def ask_all(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        """The answers to several, all done or, if the server refuses one of them, none: a transaction."""
        packed = [pack(command) for command in (("MULTI",), *commands, ("EXEC",))]
        return await self._send(b"".join(packed), len(packed) - 1)

    async def _send(self, packed: bytes, left: int, read: Read | None = None) -> Any:
        if self.ended.done():
            raise NotConnected(str(self.ended.result()))
        self.waiting.append(asked := Asked(self.loop, left, read))
        self.transport.write(packed)
        return await asked.answer

    async def run(self, name: str, bus: str, *arguments: Any) -> Any:
        """What a script returns."""
        if name not in self.shas:
            self.shas[name] = (await self.ask("SCRIPT", "LOAD", script(name))).decode()
        try:
            return await self.ask("EVALSHA", self.shas[name], 1, bus, *arguments)
        except NO_SCRIPT:  # SCRIPT FLUSH
            self.shas.pop(name, None)
            return await self.run(name, bus, *arguments)

    def check(self) -> None:
        """Give it up if an answer is overdue: half-open, or a server that hangs."""
        if self.waiting and self.loop.time() - self.waiting[0].since > ANSWER:
            self.end(NotConnected(f"no answer for {ANSWER:g} s"))

    def end(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
        while self.waiting:
            asked = self.waiting.popleft()
            if not asked.answer.done():
                asked.answer.set_exception(NotConnected(str(error) or type(error).__name__))
        self.transport.abort()


class Listener(Link):
    """A connection that listens to channels; being there is what tells others that this process is."""

    def __init__(self, told: Callable[[bytes, bytes], None]) -> None:
        super().__init__()
        self.told = told

    def answered(self, answer: Any) -> None:
        if type(answer) is list and answer and answer[0] == b"message":
            self.told(answer[1], answer[2])
        else:
            super().answered(answer)

    async def listen(self, command: str, *channels: str) -> None:
        """SUBSCRIBE or UNSUBSCRIBE; returns when the server has confirmed each."""
        await self._send(pack((command, *channels)), len(channels) - 1)


class Channels:
    """What is listened to, however often the connection changes."""

    def __init__(self) -> None:
        self.wanted: Counter[str] = Counter()
        self.listener: Listener | None = None

    async def attach(self, listener: Listener) -> None:
        self.listener = listener
        await listener.listen("SUBSCRIBE", *self.wanted)

    async def add(self, *names: str) -> None:
        self.wanted.update(names)
        await self._tell("SUBSCRIBE", [name for name in names if self.wanted[name] == 1])

    async def remove(self, *names: str) -> None:
        self.wanted.subtract(names)
        left = [name for name in names if self.wanted[name] <= 0]
        for name in left:
            del self.wanted[name]
        await self._tell("UNSUBSCRIBE", left)

    async def _tell(self, command: str, names: list[str]) -> None:
        if names and self.listener is not None:
            with suppress(RedisError, OSError):  # a new connection will listen to what is wanted
                await self.listener.listen(command, *names)
