"""``--engine nats``: a NATS server with JetStream and MQTT, run and watched, so that devices have a durable bus.

Theory of operation. What a device sends with QoS 1 the server publishes to its subject, stores once more in its own
stream for MQTT, and acknowledges when that is done. Were the bus another stream, an acknowledged message could be lost
between the two; so the bus *is* that stream: it takes both in the order in which they came, and the second cannot be
stored before the first. The bus takes topics by their first token, so no device is let in before it knows those of all
that devices may publish: a server that may not know one yet is started with no device first, and then told of them.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tidings.kernel.errors import BusUnavailable, TidingsError
from tidings.kernel.transport import Event

from .configuration import HOST, Devices, Options, check_doors, configured, first_tokens
from .devices import FILE, HASH, read
from .folder import CONFIGURATION, Folder
from .process import log
from .supervisor import START, Supervisor, explained

if TYPE_CHECKING:
    from tidings.transports.nats.transport import NATSTransport

PROBE, ONE = "_tidings.mark.engine", {"Nats-Rollup": "sub", "Nats-TTL": "60s"}  # one message, and not for long
ANSWER, AGAIN = 2.0, 0.2  # seconds
HIDDEN = "hidden"
LOOK = 1.0  # seconds between looks at the file of devices


class Engine:
    """The server of one folder: ``async with Engine(Options(data="bus")) as engine: App("shop", engine.url)``.

    Opening raises ``BusUnavailable`` (a port is taken, another engine has the folder), ``BusReadOnly``, ``BusFull``,
    ``InvalidOption`` (what would be open to a network), ``MissingExtra``. A server that ends is started again.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.folder = options, Folder(options.folder)
        self.server: Supervisor | None = None
        self._transport: NATSTransport | None = None
        self._following: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def url(self) -> str:
        """Of the bus, for apps on this machine that may read the folder; no secret is in it."""
        return self.options.url()

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by what for."""
        options, secure = self.options, "s" if self.options.cert else ""
        host = f"[{options.host}]" if ":" in options.host else options.host
        told = {"apps": f"nats://{HOST}:{options.port}", "mqtt": f"mqtt{secure}://{host}:{options.mqtt}"}
        websocket = {"websocket": f"ws{secure}://{host}:{options.websocket}/mqtt"} if options.websocket else {}
        return told | websocket

    def print_config(self) -> str:
        """The server's configuration, as it would be run, without secrets; nothing is written."""
        options = self.options
        if options.cluster and options.cluster.password:
            options = replace(options, cluster=replace(options.cluster, password=HIDDEN))
        return HASH.sub(HIDDEN, configured(options, self._devices(), self.folder.public_key(make=False)))

    # -- life cycle

    async def __aenter__(self) -> Engine:
        devices = self._devices()
        await self.folder.open()
        try:
            self.folder.belong(self.options.cluster.name if self.options.cluster else "")
            unknown = first_tokens(self.options, devices) - self.folder.known
            await self._start(() if unknown else devices)
            if unknown:
                await self.reload()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._following = asyncio.ensure_future(self._follow_devices())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        await self._end()
        self.folder.close()

    async def wait(self) -> None:
        """Until the server has ended so often that it is given up; raises why. Cancel it when you stop."""
        if self.server is not None:
            await self.server.wait()

    async def check(self) -> None:
        """Raises ``BusUnavailable`` or ``BusFull`` unless the server stores a message now: what ``/readyz`` asks."""
        from tidings.transports.nats.frames import Frame, head

        server, transport = self.server, self._transport
        if server is None or transport is None or not server.running:
            why = server.trouble if server else "it was not started"
            raise (server and server.error) or BusUnavailable("the NATS server is not running", why=why)
        (answer,) = await transport.exchange([Frame(PROBE, head({}, "", None, ONE), b"")], within=ANSWER)
        told = json.loads(answer.data) if answer is not None and answer.data else {"error": {}}
        if "error" in told:
            why = told["error"].get("description") or "it has not answered"
            raise explained(why, "the NATS server takes no messages")

    # -- devices

    def _devices(self) -> Devices:
        added = read(self.options.folder)
        known = added is not None or bool(self.options.devices)
        devices = (*self.options.devices, *(added or ())) if known else None
        check_doors(self.options, devices)
        return devices

    async def reload(self) -> None:
        """Let the server know the devices as they are now; who has lost its rights is disconnected.

        Raises ``InvalidOption`` and ``BusError``; then it goes on with those it knew.
        """
        async with self._changing:
            server, devices = self.server, self._devices()
            if server is None:
                raise BusUnavailable("the NATS server is not running")
            await self._cover(devices)
            before = server.configuration.read_text()
            self.folder.write(CONFIGURATION, configured(self.options, devices, self.folder.public))
            try:
                await server.reload()
            except BaseException:
                self.folder.write(CONFIGURATION, before)
                raise
            log.info("devices that may come: %s", "any" if devices is None else len(devices))

    async def _follow_devices(self) -> None:
        path = self.folder.path / FILE
        seen = _stamp(path)
        while True:
            await asyncio.sleep(LOOK)
            if (now := _stamp(path)) != seen:
                try:
                    await self.reload()
                    seen = now
                except BusUnavailable as error:  # it is tried again
                    log.warning("devices are as they were: %s", error)
                except TidingsError as error:
                    seen = now
                    log.error("devices are as they were: %s", error)

    # -- the server

    async def _start(self, devices: Devices) -> None:
        path = self.folder.write(CONFIGURATION, configured(self.options, devices, self.folder.public))
        self.server = Supervisor(path, [self.folder.lock])
        await self.server.start()
        self._transport = await self._connected()
        await self._cover(devices)

    async def _connected(self) -> NATSTransport:
        """A connection of our own, by which the bus is there; a server of a cluster may have to wait for others."""
        from tidings.transports.nats import NATS

        loop = asyncio.get_running_loop()
        deadline = loop.time() + START
        while True:
            transport = NATS.from_url(self.url).transport()
            try:
                await transport.open(_heard)
                return transport
            except BusUnavailable:
                if loop.time() > deadline or self.server is None or not self.server.running:
                    raise
            await asyncio.sleep(AGAIN)

    async def _cover(self, devices: Devices) -> None:
        """The bus takes what they may publish. Raises ``BusError``."""
        firsts = first_tokens(self.options, devices)
        if self._transport is not None:
            await self._transport.cover([f"{first}.>" for first in firsts])
            self.folder.know(firsts)

    async def _end(self) -> None:
        transport, self._transport = self._transport, None
        server, self.server = self.server, None
        if transport is not None:
            await transport.close()
        if server is not None:
            await server.stop()


def _heard(event: Event) -> None:
    log.debug("the connection to the NATS server: %s", event.kind)


def _stamp(path: Path) -> tuple[int, int]:
    """Changes with the file."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_ino
