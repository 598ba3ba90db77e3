"""Looking inside a bus and at its server, mending groups, and what runs by itself."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from heapq import merge
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError, ResponseError

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.message import seconds
from tidings.kernel.topics import DEAD, GROUP, REQUEST, TICK, matches
from tidings.kernel.transport import Event
from tidings.transports._matcher import expression

from . import size
from .entries import MAX_PAYLOAD, message
from .links import translated

if TYPE_CHECKING:
    from .transport import RedisTransport

BEAT, SWEEP, LOOK_AGAIN, TRIM_EVERY = 1.0, 0.005, 5.0, 10.0  # seconds; SWEEP: and group
ABANDONED = 7 * 86400.0  # seconds; a group without members for so long no longer holds retention back
FOREVER = 1e12
OLDEST = (6, 2)  # of servers: XPENDING IDLE, XTRIM MINID
SEQUENCE = 22  # bits of a position for the number within a millisecond: positions have 63 for a hundred years

CAPABILITIES = spi.Capabilities(
    durable="none",
    ordering="total",
    delay="emulated",
    delay_resolution=0.02,
    lease="timer",
    fence="scripted",
    crash_count="native",
    start="native",
    replay="native",
    expiry="emulated",
    wildcards="emulated",
    atomic_settle=True,
    publish_atomic=True,
    peek="native",
    provision="native",
    stable_id=True,
    max_payload=MAX_PAYLOAD,
    request="emulated",
)


def position(id: bytes) -> int:
    """A stream's id as a number that grows with it."""
    ms, _, number = id.partition(b"-")
    return int(ms) << SEQUENCE | int(number)


def _id(at: int) -> str:
    return f"{at >> SEQUENCE}-{at & (1 << SEQUENCE) - 1}"


async def _ask(bus: RedisTransport, *command: Any) -> Any:
    link = await bus.linked(bus.loop.time() + bus.publish_wait)
    try:
        return await link.ask(*command)
    except NotConnected as error:
        raise bus.server.unavailable(error) from error
    except RedisError as error:
        raise translated(error, bus.server.shown) from error


async def _topics(bus: RedisTransport, pattern: str) -> list[str]:
    match = expression(pattern).fullmatch
    names = [name.decode() for name in await _ask(bus, "SMEMBERS", f"{bus.bus}topics")]
    return sorted(name for name in {*names, *bus.own_keys} if match(name))


async def topics(bus: RedisTransport, pattern: str = ">") -> Sequence[spi.TopicInfo]:
    found = []
    for topic in await _topics(bus, pattern):
        last = await _ask(bus, "XREVRANGE", bus.key(topic), "+", "-", "COUNT", 1)
        if last:
            time = int(last[0][0].partition(b"-")[0]) / 1000
            found.append(spi.TopicInfo(topic, await _ask(bus, "XLEN", bus.key(topic)), time))
    return found


async def groups(bus: RedisTransport, pattern: str = ">") -> Sequence[spi.GroupInfo]:
    flat = await _ask(bus, "HGETALL", f"{bus.bus}groups")
    waiting = Counter[str]()
    for member in await _ask(bus, "ZRANGE", f"{bus.bus}due", 0, -1):
        waiting[member.decode().partition(":")[2]] += 1
    records = {name.decode(): msgspec.json.decode(blob) for name, blob in zip(flat[::2], flat[1::2], strict=True)}
    return [await _group(bus, name, records[name], waiting) for name in sorted(records) if matches(pattern, name)]


async def _group(bus: RedisTransport, name: str, known: Any, waiting: Counter[str]) -> spi.GroupInfo:
    lag, pending, first = 0, 0, list[int]()
    private = [GROUP + each for each in known["names"]]
    for topic in [*await _topics(bus, known["pattern"]), *private, *(known.get("gaps") or ())]:
        behind, held, oldest = await _behind(bus, bus.key(topic), known["id"])
        lag, pending = lag + behind, pending + held
        first += [oldest] if oldest else []
    dead = sum([await _ask(bus, "XLEN", bus.key(DEAD + each)) for each in known["names"]])
    channel = f"{bus.bus}members:{known['id']}"
    members = (await _ask(bus, "PUBSUB", "NUMSUB", channel))[1]
    oldest_at = min(first) / 1000 if first else None
    parked = sum(waiting[topic] for topic in private)
    return spi.GroupInfo(name, known["app"], known["pattern"], lag, pending, parked, dead, oldest_at, members)


async def _behind(bus: RedisTransport, key: str, group: str) -> tuple[int, int, int]:
    """What of a stream a group has not been given, what it holds, and the milliseconds of its first unsettled."""
    try:
        flat = await _ask(bus, "XINFO", "GROUPS", key)
    except errors.BusError:  # no such stream
        return 0, 0, 0
    for told in (dict(zip(each[::2], each[1::2], strict=True)) for each in flat):
        if told[b"name"].decode() != group:
            continue
        last, pending, lag = told[b"last-delivered-id"].decode(), told[b"pending"], told.get(b"lag")
        if lag is None:  # the server cannot tell
            lag = len(await _ask(bus, "XRANGE", key, f"({last}", "+"))
        lag = lag and min(lag, await _ask(bus, "XLEN", key))  # it counts what was trimmed before it was read
        first = (await _ask(bus, "XPENDING", key, group))[1] if pending else None
        if first is None and lag:
            ((first, _),) = await _ask(bus, "XRANGE", key, f"({last}", "+", "COUNT", 1) or [(None, None)]
        return lag, pending, int(first.partition(b"-")[0]) if first else 0
    return 0, 0, 0


async def peek(bus: RedisTransport, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
    """Two streams may use one id: a page ends only where the next position begins, so it may be a little longer."""
    found: list[list[spi.Stored]] = []
    for topic in await _topics(bus, pattern):
        entries = await _ask(bus, "XRANGE", bus.key(topic), f"({_id(after)}", "+", "COUNT", limit)
        found.append([spi.Stored(position(id), message(topic, id, entry)) for id, entry in entries])
    page: list[spi.Stored] = []
    for stored in merge(*found, key=lambda stored: stored.position):
        if len(page) >= limit and stored.position != page[-1].position:
            break
        page.append(stored)
    return page


async def manage(bus: RedisTransport, what: str, group: str, to: str = "", key: str = "") -> None:
    wait = bus.publish_wait
    refused = (await bus.run("manage", what, group, to, key, *bus.owned(), wait=wait)).decode()
    if refused == "NOGROUP":
        names = [name.decode() for name in await _ask(bus, "HKEYS", f"{bus.bus}groups")]
        raise errors.NotFound(f"no group {group!r}", mend=errors.nearest(group, names))
    if refused == "BUSY":
        raise errors.BusError(f"group {group!r} has members at work", mend="stop the app that consumes it")
    if refused == "EXISTS":
        raise errors.BusError(f"group {to!r} exists", mend=f"drop it first, or drop {group!r}")


def check_server(bus: RedisTransport, told: dict[str, str]) -> None:
    """Whether this server will do, by its INFO; raises ``BusUnavailable``."""
    version = told.get("redis_version", "0.0")
    if told.get("loading") == "1":
        raise errors.BusUnavailable(f"Redis at {bus.server.shown} is loading its data", mend="wait")
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        what = f"Redis at {bus.server.shown} is {version}"
        raise errors.BusUnavailable(what, why="6.2 is the oldest that can", mend="use Redis 7, or Valkey")
    if told.get("role") == "slave":
        what = f"Redis at {bus.server.shown} is a replica"
        raise errors.BusUnavailable(what, why="it takes no writes", mend="name the primary, or use redis+sentinel://")
    if bus.server.kind != "cluster" and told.get("cluster_enabled") == "1":
        what = f"Redis at {bus.server.shown} is a cluster"
        raise errors.BusUnavailable(what, mend="write redis+cluster://")


async def capabilities(bus: RedisTransport, told: dict[str, str]) -> spi.Capabilities:
    """By the server's INFO and settings. A policy that may drop streams is refused."""
    link, told = await bus.linked(None), dict(told)
    with suppress(ResponseError):  # forbidden, or renamed by who runs it: INFO knows the rest
        for name in ("appendfsync", "maxmemory-policy", "maxmemory"):
            found = await link.ask("CONFIG", "GET", name)
            told |= {found[0].decode(): found[1].decode()} if found else {}
    policy = told.get("maxmemory-policy") or told.get("maxmemory_policy", "")
    if policy.startswith("allkeys") and told.get("maxmemory", "0") != "0":
        raise errors.BusUnavailable(
            f"Redis at {bus.server.shown} may drop messages",
            why=f"its maxmemory-policy is {policy}: when memory is short it deletes any key",
            mend="CONFIG SET maxmemory-policy noeviction",
        )
    if told.get("aof_enabled") != "1":
        return CAPABILITIES
    power = told.get("appendfsync") == "always"
    return msgspec.structs.replace(CAPABILITIES, durable="power" if power else "process")


def refusal(bus: RedisTransport, reason: str) -> errors.TidingsError:
    """A script's reason as an error."""
    code, _, about = reason.partition(" ")
    if code == "NOANSWERER":
        service = about.removeprefix(REQUEST)
        return errors.NoAnswerer(f"nobody answers {service!r}", mend="start the app that answers it")
    if code == "WIDE":
        what = f"group {about!r} would read more than {bus.options.topics:,} topics"
        why = "each is a stream of its own, and a key of every read"
        return errors.BusError(what, why=why, mend="narrow its pattern, use fewer topics, or raise topics=")
    return errors.BusError(reason, mend="another program uses this key: choose another namespace")


def not_held(index: int, delivery: spi.Delivery, kind: Literal["unknown", "fenced"] = "fenced") -> spi.Failure:
    what, why = f"{delivery.message.topic!r}: not held any more", "its lease ended, or it was settled"
    return spi.Failure(index, kind, errors.BusError(what, why=why))


def info(blob: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in blob.decode(errors="replace").splitlines())
    return {name: value for name, separator, value in pairs if separator}


class Upkeep:
    """What runs by itself while a bus is open."""

    def __init__(self, bus: RedisTransport) -> None:
        self.bus, self.kept = bus, seconds(bus.options.retain, "retain")

    def start(self) -> None:
        for running in (self._beat(), self._sweep(), self._move(), self._trim_often()):
            self.bus.spawn(running)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(min(BEAT, self.bus.lease / 3))
            link, listener = self.bus.link, self.bus.channels.listener
            if link is None or listener is None or not self.bus.up.is_set():
                continue
            for end in (link, listener):
                end.check()
            self.bus.spawn(listener.ask("PING"))
            for consumer in tuple(self.bus.consumers):
                self.bus.spawn(consumer.tend())  # not awaited here: it is here that a server that hangs is noticed

    async def _sweep(self) -> None:
        """Look after those who have died: of one group after the other, so that many cost little."""
        while True:
            every = max(min(max(self.bus.lease / 5, 0.05), 1.0), len(self.bus.consumers) * SWEEP)
            await asyncio.sleep(every * random.uniform(0.8, 1.0))
            for consumer in tuple(self.bus.consumers):
                if self.bus.loop.time() > self.bus.calm:
                    with suppress(RedisError, errors.BusError):
                        await consumer.sweep(every)

    async def _move(self) -> None:
        """Move what is due, while this process has consumers: the others need none moved."""
        wait = LOOK_AGAIN
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.bus.stir.wait()
            self.bus.stir.clear()
            wait = LOOK_AGAIN
            if self.bus.consumers:
                try:
                    moved, due = await self.bus.run("due", self.bus.options.topics, 500)
                    wait = 0.0 if moved == 500 else min(float(due or LOOK_AGAIN), LOOK_AGAIN)
                except errors.BusError as error:  # out of memory: nothing was moved
                    self.bus.notify(Event("lost", 0, str(error)))

    async def _trim_often(self) -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY * random.uniform(0.8, 1.2))
            with suppress(RedisError, OSError, errors.BusError):
                link = await self.bus.linked(None)
                if await link.ask("SET", f"{self.bus.bus}trimming", self.bus.member, "NX", "PX", int(TRIM_EVERY * 900)):
                    await self.trim()

    async def trim(self) -> int:
        """Drop what is older than ``retain``, or too much, and settled; of private addresses all that is settled."""
        link, now = await self.bus.linked(None), self.bus.clock.now()
        topics = sorted(topic.decode() for topic in await link.ask("SMEMBERS", f"{self.bus.bus}topics"))
        topics = [topic for topic in topics if topic not in self.bus.own_keys and not topic.startswith(DEAD)]
        private = [topic for topic in topics if topic.startswith((GROUP, REQUEST, TICK))]
        public = [topic for topic in topics if not topic.startswith((GROUP, REQUEST, TICK))]
        await self._fit(public, now)
        dropped, passed = 0, set[bytes]()
        for before, groups, absent, names in ((now - self.kept, 0, ABANDONED, public), (now, 1, FOREVER, private)):
            for some in _chunks(names, 100):
                arguments = (max(0, int(before * 1000)), groups, absent, *map(self.bus.key, some))
                count, *told = await self.bus.run("trim", *arguments)
                dropped += count
                passed.update(told)
        for name in sorted(passed):
            what = f"{name.decode()} has had no member for 7 days: what it had not settled of what was dropped is gone"
            self.bus.notify(Event("retention", 1, what))
        return dropped

    async def _fit(self, topics: Sequence[str], now: float) -> None:
        """Keep for a shorter time while the bus is above ``max_size``, for longer again when it is not."""
        most, retain = size(self.bus.options.max_size), seconds(self.bus.options.retain)
        if not most:
            return
        found = [await self.bus.run("measure", *map(self.bus.key, some)) for some in _chunks(topics, 100)]
        total, oldest = sum(bytes for bytes, _ in found), min((at for _, at in found if at), default=now * 1000)
        if total > most:
            self.kept = min(self.kept, now - oldest / 1000) * most / total
        else:
            self.kept = min(retain, self.kept * 1.1 + 1.0)


def _chunks(names: Sequence[str], count: int) -> Iterable[Sequence[str]]:
    return (names[at : at + count] for at in range(0, len(names), count))
