"""The stream of a bus, and what is published to it and beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Any

from tidings.kernel import errors
from tidings.kernel import transport as spi
from tidings.kernel.clock import SYSTEM
from tidings.kernel.message import Message, new_id, seconds
from tidings.kernel.topics import DEAD, GROUP, INTERNAL, REPLY, REQUEST, TICK, token, untoken
from tidings.kernel.transport import Event, Failure
from tidings.transports._points import passed
from tidings.transports._wire import attributes, stamp

from . import NATS
from .connection import AGAIN, ANSWER, Answer, Connection, text_of
from .frames import MQTT, SESSIONS, Frame, Letter, Refused, head, superset, widened

Notify = Callable[[Event], None]

ROOM = 16 * 1024  # bytes of a message's largest size kept for its headers
WINDOW, WINDOW_BYTES = 1024, 4 * 1024 * 1024  # published and not yet answered for
KNOWN = 65_536  # topics
MARK, DELAY, WON, SUBJECT = "_tidings.mark.", "_tidings.delay.", "_tidings.tick.", "_tidings.subject."
OWN = tuple(name + ">" for name in (GROUP, DEAD, TICK, MARK, DELAY, WON, SUBJECT, INTERNAL + "control."))
FULL, TOO_LARGE = (10047, 10077), 10054
CORE = (REQUEST, REPLY)  # what is never stored
NATIVE_REPLY = REPLY + "native."  # somebody else's inbox, as one token


class Stream(Connection):
    """A connection to the stream of one bus."""

    capabilities = spi.Capabilities(durable="process", ordering="total")

    def __init__(self, options: NATS) -> None:
        where = ", ".join(f"{host}:{port}" for host, port in options.servers)
        super().__init__(options.connecting(), where, seconds(options.publish_wait, "publish_wait"))
        self.options, self.covering = options, asyncio.Lock()
        self.lease, self.clock = seconds(options.lease, "lease"), SYSTEM
        self.prefix = f"{options.namespace}." if options.namespace else ""
        self.domain = {"domain": options.domain} if options.domain else {}
        self.api = f"$JS.{options.domain}.API" if options.domain else "$JS.API"
        self.name = options.stream or options.namespace or "tidings"
        self.direct = f"{self.api}.DIRECT.GET.{self.name}"
        self.own = [self.prefix + subject for subject in OWN] + ([SESSIONS + ">"] if self.name == MQTT else [])
        self.devices = options.listening
        self.subjects: list[str] = []
        self.firsts: set[str] = set()  # first tokens of topics that the stream takes, all of them
        self.covered: set[str] = set()
        self.unanswered: set[str] = set()  # requests that nobody listens to

    # -- the stream

    async def ask(self, what: str, *about: Any, missing: Any = ..., **more: Any) -> Any:
        """What JetStream's API says; ``missing`` where there is no such thing. Raises ``BusError``."""
        import nats.errors
        import nats.js.errors as refusals

        began = self.loop.time()
        why = "not connected"
        while await self.up(began + self.wait) and self.loop.time() < began + self.wait:
            try:
                return await getattr(self.client.jetstream(**self.domain), what)(*about, **more)
            except refusals.ServiceUnavailableError:  # a server that has just started needs a moment
                why = "JetStream does not answer"
                if self.loop.time() > began + ANSWER:
                    break
            except refusals.APIError as error:
                if missing is not ... and isinstance(error, refusals.NotFoundError):
                    return missing
                raise errors.BusError(f"NATS refuses: {error.description}", why=f"error {error.err_code}") from error
            except (nats.errors.Error, OSError, TimeoutError) as error:
                why = text_of(error)
            await asyncio.sleep(AGAIN)
        raise errors.BusUnavailable(f"NATS at {self.where} does not answer", why=why)

    async def _provide(self) -> None:
        """The stream, created or found, with all that is needed; what it cannot do is refused."""
        from nats.js import api

        options, name, own = self.options, self.name, self.own
        info = await self.ask("stream_info", name, missing=None)
        wanted: dict[str, Any] = {
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_msg_schedules": True,
            "allow_rollup_hdrs": True,
        }
        if info is None:
            if not options.provision:
                raise errors.NotFound(f"there is no stream {name!r}", mend="create it, or leave out provision=false")
            kept: dict[str, Any] = {"max_age": seconds(options.retain, "retain"), "max_bytes": options.max_size}
            kept["duplicate_window"] = min(seconds(options.dedup, "dedup"), kept["max_age"] or math.inf)
            kept |= {"storage": api.StorageType(options.storage), "num_replicas": options.replicas}
            config = api.StreamConfig(name=name, subjects=own, **kept, **wanted)
            try:
                info = await self.ask("add_stream", config)
            except errors.BusError:
                info = await self.ask("stream_info", name, missing=None)
                if info is None:  # else somebody else was quicker, and has widened it
                    raise
        config = info.config
        lacking = [flag for flag in wanted if not getattr(config, flag)]
        missing = [s for s in own if not any(superset(known, s) for known in config.subjects or ())]
        if config.mirror or config.sealed or config.no_ack or config.retention == api.RetentionPolicy.WORK_QUEUE:
            what = f"the stream {name!r} cannot be a bus"
            raise errors.BusUnavailable(what, why="it is a mirror, sealed, a work queue, or gives no acknowledgements")
        if lacking or missing:
            if not options.provision:
                why = ", ".join([*lacking, *missing])
                mend = "let an administrator add it, or leave out provision=false"
                raise errors.BusUnavailable(f"the stream {name!r} lacks what Tidings needs", why=why, mend=mend)
            more = {"subjects": widened(config.subjects or (), own), **dict.fromkeys(lacking, True)}
            info = await self.ask("update_stream", config, **more)
            if not info.config.allow_msg_schedules:
                raise errors.BusUnavailable(f"NATS at {self.where} is too old", why="it has no message schedules: 2.12")
            await self._widen()  # what was added since it was read is not taken out again
        else:
            self.subjects = list(info.config.subjects)
        self._claim_capabilities(info.config)

    def _claim_capabilities(self, config: Any) -> None:
        most = self.client.max_payload if config.max_msg_size in (None, -1) else config.max_msg_size
        self.largest = min(most, self.client.max_payload)
        retained: spi.Level = "native" if config.retention == "limits" else "unavailable"
        self.capabilities = spi.Capabilities(
            durable="none" if config.storage == "memory" else "power" if self.options.sync == "always" else "process",
            ordering="total",
            delay="native",
            delay_resolution=0.01,
            lease="timer",
            fence="scripted",
            crash_count="native",
            start=retained,
            replay=retained,
            dedup=config.duplicate_window or 0.0,
            expiry="emulated",
            wildcards="native",
            peek="native",
            provision="native" if self.options.provision else "unavailable",
            stable_id=True,
            max_payload=self.largest - ROOM,
            request="native",
        )

    async def cover(self, names: Iterable[str]) -> None:
        """See to it that the stream takes these topics or patterns; raises ``BusError``.

        Two who add subjects at once could undo each other's: each first leaves a note (what every bus needs takes
        none), and whoever writes last has read all notes left before.
        """
        new = {name for name in names if name not in self.covered and name[0] not in "*>_$"}
        firsts = {first for name in new if (first := name.partition(".")[0]) not in self.firsts}
        lacking = {name for name in new if not self._takes(name)} if firsts else ()
        if lacking and not self.options.provision:
            what = f"the stream {self.name!r} does not take {', '.join(sorted(lacking))}"
            raise errors.BusError(what, mend="let an administrator add the subject, or leave out provision=false")
        if lacking:
            async with self.covering:
                await self._widen(firsts)
        if len(self.covered) > KNOWN:
            self.covered.clear()
        self.covered |= new

    def _takes(self, name: str) -> bool:
        return any(superset(subject, self.prefix + name) for subject in self.subjects)

    async def _widen(self, firsts: Collection[str] = ()) -> None:
        root, forever = self.prefix + SUBJECT, head({}, "", None, {"Nats-TTL": "never"})
        if firsts:
            await self.exchange([Frame(root + first, forever, b"") for first in firsts])
        while True:
            info = await self.ask("stream_info", self.name, subjects_filter=root + ">")
            noted = {name.removeprefix(root) for name in info.state.subjects or ()}.union(firsts)
            more = [name for first in noted for name in (first, first + ".>")]
            wanted = widened(info.config.subjects, [self.prefix + name for name in (*OWN, *more)])
            if set(wanted) <= set(info.config.subjects):
                self.subjects, self.firsts = wanted, noted
                return
            await self.ask("update_stream", info.config, subjects=wanted)

    # -- publishing

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        letters = []
        for index, message in enumerate(messages):
            to = message.address or message.topic
            key = f"{message.id}/pub/{to}" if to[0] != "_" else f"{message.id}/replay/{new_id()}"
            letters.append(Letter(index, message, to, attributes(message), key, message.deliver_at))
        failed = await self.send(letters)
        return sorted(failed.values(), key=lambda failure: failure.index) if failed else ()

    async def send(self, letters: Sequence[Letter]) -> dict[int, Failure]:
        """Store all, or hand them to who listens now; the first failure of each index."""
        failed: dict[int, Failure] = {}
        if self.devices:
            letters = [each for letter in letters for each in letter.copies(self.devices)]
        core = [letter for letter in letters if letter.to.startswith(CORE)]
        if core:
            await self._send_core(core, failed)
            letters = [letter for letter in letters if not letter.to.startswith(CORE)]
        if new := {letter.to for letter in letters}.difference(self.covered):
            try:
                await self.cover(new)
            except errors.BusError as error:
                self._refuse(failed, [letter for letter in letters if not self._takes(letter.to)], error)
        now, frames, whose = self.clock.now(), list[Frame](), list[int]()
        for letter in letters:
            frame = self._frame(letter, now)
            if len(frame.head) + len(frame.body) > self.largest or len(frame.body) > self.largest - ROOM:
                self._refuse(failed, [letter], _too_large(letter.message, self.largest - ROOM))
            elif letter.index not in failed:
                frames.append(frame)
                whose.append(letter.index)
        if frames:
            passed("publish.before")
            for at, failure in (await self.store(frames)).items():
                failed.setdefault(whose[at], Failure(whose[at], *failure))
            passed("publish.after")
        return failed

    def _refuse(self, failed: dict[int, Failure], letters: Iterable[Letter], error: errors.TidingsError) -> None:
        for letter in letters:
            failed.setdefault(letter.index, Failure(letter.index, "rejected", error))

    def _frame(self, letter: Letter, now: float) -> Frame:
        message, to, told, key, due = letter.message, letter.to, letter.told, letter.key, letter.due
        native = {"Nats-Msg-Id": key}
        subject = self.prefix + to
        if letter.device:
            native["Nmqtt-Pub"] = "1"  # who subscribes with QoS 1 gets it from the session, and not twice
        if to.startswith(DEAD):
            native["Nats-TTL"] = "never"
        if due is not None and due > now:
            native |= {"Nats-Schedule": f"@at {stamp(due)}", "Nats-Schedule-Target": subject, "Nats-TTL": "never"}
            subject = f"{self.prefix}{DELAY}{to}.{blake2b(key.encode(), digest_size=16).hexdigest()}"
        return Frame(subject, head(told, message.content_type, message.headers, native), message.body)

    async def store(self, frames: Sequence[Frame]) -> dict[int, tuple[Any, errors.TidingsError]]:
        """Store all; what was not, with kind and error. What may have been stored goes again under its id."""
        failed: dict[int, tuple[Any, errors.TidingsError]] = {}
        todo, maybe, pause = list(range(len(frames))), set[int](), AGAIN
        deadline, why = self.loop.time() + self.wait, "not connected"
        while todo and await self.up(deadline):
            again: list[int] = []
            for some in _windows(todo, frames):
                answers = await self.exchange([frames[at] for at in some])
                for at, answer in zip(some, answers, strict=True):
                    if answer is not None and answer.data and b'"error"' not in answer.data:
                        continue
                    if isinstance(verdict := _verdict(answer), str):
                        again.append(at)
                        why = verdict
                        maybe.update([at] if answer is None else ())
                    else:
                        failed[at] = ("unknown" if at in maybe else "rejected", verdict)
            if (todo := again) and self.loop.time() + pause < deadline:
                await self._mend({frames[at].subject for at in todo})
                await asyncio.sleep(pause)
                pause = min(1.0, 2 * pause)
            elif todo:
                break
        error = errors.BusUnavailable(f"NATS at {self.where} has not accepted it", why=why)
        return failed | {at: ("unknown" if at in maybe else "rejected", error) for at in todo}

    async def _mend(self, subjects: set[str]) -> None:
        """Perhaps somebody deleted the stream, or these subjects of it."""
        if self.ready.is_set():
            with contextlib.suppress(errors.BusError):
                self.covered, self.firsts = set(), set()
                await self._provide()
                await self.cover(subject.removeprefix(self.prefix) for subject in subjects)

    # -- core NATS: requests, replies

    async def _send_core(self, letters: Sequence[Letter], failed: dict[int, Failure]) -> None:
        out, asked = list[bytes](), dict[str, Letter]()
        for letter in letters:
            message, reply = letter.message, ""
            if message.reply_to and letter.to.startswith(REQUEST):
                reply = f"{self.inbox}q.{token(message.reply_to)}.{token(message.id)}"
                asked[reply] = letter
            native = letter.to.startswith(NATIVE_REPLY)
            subject = untoken(letter.to.removeprefix(NATIVE_REPLY)) if native else self.prefix + letter.to
            frame = Frame(subject, head(letter.told, message.content_type, message.headers, {}), message.body)
            if len(frame.head) + len(frame.body) > self.client.max_payload:
                self._refuse(failed, [letter], _too_large(message, self.client.max_payload - ROOM))
            else:
                out.append(frame.to(reply))
        try:
            if not await self.up(self.loop.time() + self.wait):
                raise errors.BusUnavailable("not connected")
            if not asked:
                await self.write(b"".join(out))
            elif await self.exchange([Frame(f"{self.api}.INFO", b"", b"")], b"".join(out)) == [None]:
                raise errors.BusUnavailable("no answer came")  # one comes behind those that say where nobody listens
        except Exception as error:
            gone = errors.BusUnavailable(f"NATS at {self.where} is lost", why=text_of(error))
            for letter in letters:
                failed.setdefault(letter.index, Failure(letter.index, "unknown", gone))
        for reply, letter in asked.items():
            if reply in self.unanswered:
                self.unanswered.discard(reply)
                nobody = errors.NoAnswerer(f"nobody answers {letter.message.topic!r}", mend="start the app that does")
                self._refuse(failed, [letter], nobody)


def _windows(todo: Sequence[int], frames: Sequence[Frame]) -> Iterable[Sequence[int]]:
    """Bounded stretches."""
    some, size = list[int](), 0
    for at in todo:
        some.append(at)
        size += len(frames[at].body) + len(frames[at].head)
        if len(some) >= WINDOW or size >= WINDOW_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _verdict(answer: Answer) -> str | errors.TidingsError:
    """Why a message was not stored: an error if it never will be, else a text."""
    if answer is None:
        return "no answer came"
    if isinstance(answer, Refused):
        return answer.error
    if not answer.data:
        return "no stream takes it"
    error = json.loads(answer.data)["error"]
    code, why = error.get("err_code"), error.get("description", "")
    if code in FULL:
        return errors.BusFull("the stream is full", why=why, mend="raise max_size=, or let its retention make room")
    if code == TOO_LARGE:
        return errors.TooLarge(f"NATS refuses it: {why}", mend="publish a reference to it (EIP: Claim Check)")
    return why if error.get("code") in (429, 500, 503) else errors.BusError(f"NATS refuses it: {why}")


def _too_large(message: Message[Any], most: int) -> errors.TidingsError:
    what = f"{message.topic!r}: {len(message.body):,} bytes; with its headers more than the {most:,} that NATS takes"
    return errors.TooLarge(what, mend="publish a reference to it (EIP: Claim Check)")
