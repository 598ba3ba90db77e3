"""One end of a bus: its groups, a look inside, ticks."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.clock import current_clock
from tidings.kernel.message import Message, new_id
from tidings.kernel.topics import DEAD, GROUP, REQUEST, matches, token, untoken
from tidings.kernel.transport import Event, Failure, Subscription

from . import NATS
from .connection import Ear, status
from .consumers import ACK_WAIT, GroupConsumer
from .frames import AGAIN, Frame, Generation, admitted, durable, head, metadata, opened, private, starting, stored_at
from .listener import Listener
from .stream import DELAY, KNOWN, MARK, WON, Notify, Stream

PEERS = "_tidings.peers"  # never stored: who is at work, and that a group has changed
NOT_LAST = 10071
MANY = 1024  # topics: of more, nobody is told when each got its last message
RECENT = 1.0  # seconds that a list of all groups is good for, while an app starts


class NATSTransport(Stream):
    """One end of a bus. ``client`` is a ``nats.aio.client.Client``."""

    def __init__(self, options: NATS) -> None:
        super().__init__(options)
        self.consumers: dict[GroupConsumer, None] = {}
        self.listeners: dict[Listener, None] = {}
        self.routed: set[str] = set()  # topics that some group reads, as far as is known
        self.unknown, self.looking = Counter[str](), False
        self.known: dict[str, list[Generation]] = {}
        self.again: dict[str, Generation] = {}  # consumers of private addresses, by name
        self.listed = -math.inf  # when

    # -- life cycle

    async def open(self, notify: Notify) -> None:
        self.notify, self.clock = notify, current_clock()
        await self.connect()
        try:
            await self._provide()
            await self.listen(Ear(self.prefix + PEERS, "", self._asked))
        except BaseException:
            await self.disconnect()
            raise
        self.before = self.latest = self.clock.monotonic()
        self.beat = self.loop.call_later(self.lease / 8, self._beat)
        notify(Event("connected"))

    async def close(self) -> None:
        if self.client is None and not self.reviving:
            return
        self.beat.cancel()
        for consumer in tuple(self.consumers):
            consumer.stop()
        await self.disconnect()

    async def _back(self) -> None:
        await super()._back()
        everyone: list[GroupConsumer | Listener] = [*self.consumers, *self.listeners]
        for each in everyone:
            self.run(each.check())

    def _beat(self) -> None:
        """What arrives now left the server after the last beat but one: that is what its lease counts from."""
        self.before, self.latest = self.latest, self.clock.monotonic()
        for consumer in tuple(self.consumers):
            consumer.expire(self.latest)
        for listener in tuple(self.listeners):
            listener.look(self.latest)
        shortest = min([self.lease, *(consumer.lease for consumer in self.consumers)])
        self.beat.cancel()
        self.beat = self.loop.call_later(shortest / 8, self._beat)

    # -- groups

    async def generations(self, recent: float = 0.0) -> dict[str, list[Generation]]:
        """Each group's consumers, the newest last; perhaps as they were up to ``recent`` seconds ago."""
        if self.loop.time() - self.listed < recent:
            return self.known
        found, again = dict[str, list[Generation]](), dict[str, Generation]()
        offset, more = 0, True
        while more:
            page = await self.ask("consumers_info", self.name, offset, missing=())
            for info in page:
                if info.config.durable_name and not info.config.deliver_subject:
                    self._note(found, again, info)
            offset, more = offset + len(page), len(page) >= 256
        self.known, self.again, self.listed = found, again, self.loop.time()
        return found

    def _note(self, known: dict[str, list[Generation]], again: dict[str, Generation], info: Any) -> None:
        this = Generation.of(info, self.prefix)
        if this.name.endswith(AGAIN):
            again[this.name] = this
        else:
            others = [other for other in known.get(this.groups[0], ()) if other.name != this.name]
            known[this.groups[0]] = sorted([*others, this], key=lambda generation: generation.number)

    async def subscribe(self, subscription: Subscription) -> GroupConsumer | Listener:
        pattern, group = subscription.pattern, subscription.group
        if group is None or pattern.startswith(REQUEST):
            listener = Listener(self, pattern, group or "")
            self.listeners[listener] = None
            await listener.open()
            return listener
        if pattern[0] != "_":
            await self.cover([pattern])
        mine = (await self.generations(RECENT)).get(group, [])
        if not mine and await self.ask("consumer_info", self.name, durable(group), missing=None):
            mine = (await self.generations()).get(group, [])  # to create it would change what somebody else just made
        if not mine:
            await self._create(subscription)
        else:
            last = mine[-1]
            last.check(self.prefix + pattern)
            await self._private(last.again, last.groups, subscription.app, ack_wait=last.info.config.ack_wait)
            if last.ours and last.pattern != pattern:
                await self._succeed(last, subscription)
        consumer = GroupConsumer(self, group)
        await consumer.find(RECENT)
        self.consumers[consumer] = None
        self._beat()  # perhaps more often from now on
        return consumer

    async def _create(self, subscription: Subscription) -> None:
        group, at = str(subscription.group), starting(subscription.start)
        told, name = metadata((group,), subscription.app, subscription.pattern), self._free(group, 1)
        await self._private(name + AGAIN, (group,), subscription.app, **at)
        await self._consumer(name, told, [self.prefix + subscription.pattern], **at)

    def _free(self, group: str, number: int) -> str:
        """A name for a generation; others may stand in the way, of groups that were renamed."""
        every = [generation for each in self.known.values() for generation in each]
        taken = {name for one in every for name in (one.name, one.again.removesuffix(AGAIN))}
        return next(name for n in count(number) if (name := durable(group, n)) not in taken)

    async def _private(self, name: str, groups: Sequence[str], app: str, **at: Any) -> None:
        """The consumer of a group's private address, if there is none."""
        if not await self.ask("consumer_info", self.name, name, missing=None):
            await self._consumer(name, metadata(groups, app, GROUP + groups[0]), private(groups, self.prefix), **at)

    async def _consumer(self, name: str, told: Mapping[str, str], subjects: Sequence[str], **more: Any) -> None:
        from nats.js import api

        config = api.ConsumerConfig(
            name=name,
            durable_name=name,
            filter_subjects=list(subjects),
            ack_wait=more.pop("ack_wait", ACK_WAIT * self.lease),
            max_ack_pending=-1,
            max_deliver=-1,
            metadata=dict(told),
            **more,
        )
        try:
            info = await self.ask("add_consumer", self.name, config)
        except errors.BusError:
            info = await self.ask("consumer_info", self.name, name, missing=None)
            if info is None:  # else another member was quicker, and starts elsewhere
                raise
        self._note(self.known, self.again, info)

    async def _amend(self, this: Generation, **more: Any) -> None:
        await self.ask("add_consumer", self.name, this.info.config, name=this.name, **more)
        await self._changed(this.groups[0])

    async def _succeed(self, last: Generation, subscription: Subscription | None, start: float | None = None) -> None:
        """A new generation: it reads ``subscription``'s pattern from now, or ``last``'s since ``start``."""
        first = await self.position() + 1
        if start is not None:
            first = await self._first_since(start) or first
        pattern, app = (subscription.pattern, subscription.app) if subscription else (last.pattern, last.app)
        name, told = self._free(last.groups[0], last.number + 1), metadata(last.groups, app, pattern, first, last.again)
        at: dict[str, Any] = {"opt_start_seq": first, "ack_wait": last.info.config.ack_wait}
        await self._consumer(name, told, [self.prefix + pattern], deliver_policy="by_start_sequence", **at)
        await self._changed(last.groups[0])

    async def _changed(self, group: str) -> None:
        self.listed = -math.inf
        await self.write(Frame(self.prefix + PEERS, b"", group.encode()).to(""))

    async def _first_since(self, start: float) -> int:
        """The position of the first message that was stored since then; 0: there is none."""
        since = datetime.fromtimestamp(max(start, 0.0), UTC).isoformat()
        found = await self.read(self.direct, {"start_time": since, "next_by_subj": self.prefix + ">", "batch": 1})
        return int(found[0].headers["Nats-Sequence"]) if found else 0

    async def _asked(self, msg: Any) -> None:
        """A peer wants to know which groups are at work here, or says that one has changed."""
        if msg.reply:
            here = json.dumps(Counter(consumer.group for consumer in self.consumers))
            await self.write(Frame(msg.reply, b"", here.encode()).to(""))
        elif msg.data:
            self.listed = -math.inf
        for consumer in self.consumers:
            if consumer.group == msg.data.decode(errors="replace"):
                consumer.changed += 1
                consumer.wake()

    async def _members(self) -> Counter[str]:
        """How many members each group has, in all processes that can be reached."""
        found = Counter[str]()
        for told in await self.survey(self.prefix + PEERS, 0.1):
            found.update(json.loads(told))
        return found

    # -- looking inside, and mending

    async def _counts(self, subject: str) -> dict[str, int]:
        """How many messages each stored topic has."""
        info = await self.ask("stream_info", self.name, subjects_filter=self.prefix + subject)
        return {name.removeprefix(self.prefix): number for name, number in (info.state.subjects or {}).items()}

    async def topics(self, pattern: str = ">") -> Sequence[spi.TopicInfo]:
        found = {name: n for name, n in (await self._counts(pattern)).items() if admitted(pattern, name)}
        frames = [Frame(f"{self.direct}.{self.prefix}{name}", b"", b"") for name in found]
        last = await self.exchange(frames) if 0 < len(frames) <= MANY else [None] * len(found)
        infos = (spi.TopicInfo(name, n, stored_at(at)) for (name, n), at in zip(found.items(), last, strict=True))
        return sorted(infos, key=lambda info: info.name)

    async def groups(self, pattern: str = ">") -> Sequence[spi.GroupInfo]:
        known, again, members = await self.generations(), self.again, await self._members()
        dead, parked = await self._counts(DEAD + ">"), Counter[str]()
        for name, n in (await self._counts(DELAY + GROUP + ">")).items():
            parked[name.removeprefix(DELAY + GROUP).rpartition(".")[0]] += n
        found = []
        for group, generations in sorted(known.items()):
            if matches(pattern, group):
                now, names = generations[-1], generations[-1].groups
                each = [*generations, *([again[now.again]] if now.again in again else ())]
                lag, held = (sum(getattr(g.info, f"num_{what}") for g in each) for what in ("pending", "ack_pending"))
                waits, died = sum(parked[name] for name in names), sum(dead.get(DEAD + name, 0) for name in names)
                oldest = await self._oldest(each) if lag + held else None
                counted = lag, held, waits, died, oldest, members[group]
                found.append(spi.GroupInfo(group, now.app, now.pattern, *counted))
        return found

    async def _oldest(self, each: Sequence[Generation]) -> float | None:
        firsts = [(one.info.ack_floor.stream_seq + 1, self.prefix + one.pattern) for one in each]
        asked = [{"seq": first, "next_by_subj": subject, "batch": 1} for first, subject in firsts]
        return min(filter(None, [stored_at(m) for at in asked for m in await self.read(self.direct, at)]), default=None)

    async def peek(self, pattern: str, after: int = 0, limit: int = 100) -> Sequence[spi.Stored]:
        found: list[spi.Stored] = []
        while len(found) < limit:
            question = {"seq": after + 1, "next_by_subj": self.prefix + pattern, "batch": limit - len(found)}
            came = await self.read(self.direct, question)
            for msg in came:
                to, after = msg.headers["Nats-Subject"].removeprefix(self.prefix), int(msg.headers["Nats-Sequence"])
                if admitted(pattern, to):
                    message, _ = opened(to, msg.data, msg.headers, str(after), stored_at(msg) or 0.0)
                    found.append(spi.Stored(after, message))
            if not came:
                break
        return found

    async def position(self) -> int:
        return int((await self.ask("stream_info", self.name)).state.last_seq)

    async def _at_rest(self, group: str) -> list[Generation]:
        known = await self.generations()
        if group not in known:
            raise errors.NotFound(f"no group {group!r}", mend=errors.nearest(group, known))
        if (await self._members())[group]:
            raise errors.BusError(f"group {group!r} has members at work", mend="stop the app that consumes it")
        return known[group]

    async def drop(self, group: str) -> None:
        each = await self._at_rest(group)
        names = (each[-1].again, *(one.name for one in each))
        for subject in (f"{DELAY}{GROUP}{group}.*", GROUP + group, *(f"{MARK}{name}.*" for name in names)):
            await self.ask("purge_stream", self.name, subject=self.prefix + subject)
        for name in names:
            await self.ask("delete_consumer", self.name, name, missing=None)
        await self._changed(group)

    async def seek(self, group: str, start: float) -> None:
        await self._succeed((await self._at_rest(group))[-1], None, start)

    async def rename(self, group: str, to: str) -> None:
        """Its consumers stay, with what they have settled: the name they go by is in their metadata."""
        each = await self._at_rest(group)
        if to in await self.generations():
            raise errors.BusError(f"group {to!r} exists", mend=f"drop it first, or drop {group!r}")
        names = (to, *each[-1].groups)  # dead letters of before are replayed to the old one
        again = self.again.get(each[-1].again)
        if again is not None:
            told = metadata(names, again.app, GROUP + to)
            await self._amend(again, metadata=told, filter_subject=None, filter_subjects=private(names, self.prefix))
        for one in each:
            await self._amend(one, metadata=metadata(names, one.app, one.pattern, one.start, one.again))

    # -- ticks

    async def tick(self, name: str, due: float) -> bool:
        """The last tick is a message; the next is stored only by who has seen the last one."""
        subject, me = f"{self.prefix}{WON}{token(name)}", new_id()
        while True:
            answer = await self.only(Frame(f"{self.direct}.{subject}", b"", b""))
            told: dict[str, Any] = json.loads(answer.data) if answer.data else {"due": -math.inf, "by": ""}
            if told["by"] == me:
                return True
            if told["due"] >= due:
                return False
            seen = answer.headers["Nats-Sequence"] if answer.data else "0"
            native = {"Nats-Expected-Last-Subject-Sequence": seen, "Nats-Rollup": "sub", "Nats-TTL": "never"}
            body = json.dumps({"due": due, "by": me}).encode()
            answer = await self.only(Frame(subject, head({}, "", None, native), body))
            if b'"error"' in answer.data and json.loads(answer.data)["error"]["err_code"] != NOT_LAST:
                raise errors.BusError(f"the tick {name!r} cannot be noted", why=answer.data.decode())

    # -- who listens

    async def _find_readers(self) -> None:
        """Tell of what no group reads; at most once a second."""
        try:
            await asyncio.sleep(0.2)
            patterns = [each[-1].pattern for each in (await self.generations()).values()]
            patterns += [listener.pattern for listener in self.listeners]
            unknown, self.unknown = self.unknown, Counter()
            for topic, number in unknown.items():
                if any(matches(pattern, topic) for pattern in patterns):
                    self.routed.add(topic)
                else:
                    self.notify(Event("unrouted", number, topic))
            await asyncio.sleep(1.0)
            if len(self.routed) > KNOWN:
                self.routed.clear()
        except errors.BusError:
            return  # it is lost; the next publishing asks again
        finally:
            self.looking = False

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        failed = await super().publish(messages)
        routed = self.routed
        if unknown := [to for m in messages if (to := m.address or m.topic) not in routed and to[0] != "_"]:
            self.unknown.update(unknown)
            if not self.looking:
                self.looking = True
                self.run(self._find_readers())
        return failed

    async def replied(self, asked: str, msg: Any) -> None:
        if status(msg) == "503":
            self.unanswered.add(msg.subject)
        else:
            to, _, id = asked.partition(".")
            for listener in tuple(self.listeners):
                if listener.pattern == untoken(to):
                    listener.reply(msg, untoken(id))
