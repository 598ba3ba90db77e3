"""Deliberately broken transports: wrappers of the SPI over any real one. The suite must fail on every one of them.

Each names the one test that must kill it. A mutant that survives means that the test proves nothing on that bus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from tidings.kernel.message import Message
from tidings.kernel.topics import GROUP, is_pattern
from tidings.kernel.transport import (
    Consumer,
    Delivery,
    Event,
    Failure,
    Options,
    Release,
    Retry,
    Settlement,
    Subscription,
    Transport,
)

MUTANTS: dict[str, type[Mutant]] = {}


class MutantConsumer:
    """Passes everything on."""

    def __init__(self, inner: Consumer, subscription: Subscription) -> None:
        self.inner, self.subscription = inner, subscription
        self.lease = inner.lease

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return await self.inner.receive(limit)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        return await self.inner.settle(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        await self.inner.extend(deliveries)

    async def mark(self, delivery: Delivery) -> bool:
        return await self.inner.mark(delivery)

    def stop(self) -> None:
        self.inner.stop()

    async def close(self) -> None:
        await self.inner.close()


class Mutant:
    """A transport that passes everything on; subclasses break one thing. ``killer``: the test that must fail."""

    name: ClassVar[str]
    killer: ClassVar[str]
    needs: ClassVar[str] = ""  # a capability without which the mutant breaks nothing
    consumer: ClassVar[type[MutantConsumer]] = MutantConsumer

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        MUTANTS[cls.name] = cls

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def open(self, notify: Callable[[Event], None]) -> None:
        await self.inner.open(notify)

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        return await self.inner.publish(messages)

    async def subscribe(self, subscription: Subscription) -> Consumer:
        return self.consumer(await self.inner.subscribe(subscription), subscription)

    async def close(self) -> None:
        await self.inner.close()


class MutantOptions:
    """Options whose transports are mutants."""

    def __init__(self, mutant: type[Mutant], inner: Options) -> None:
        self.mutant, self.inner = mutant, inner

    @classmethod
    def from_url(cls, url: str) -> MutantOptions:
        raise NotImplementedError

    def transport(self) -> Any:
        return self.mutant(self.inner.transport())


# -- what is received


class AckEarly(Mutant):
    """Settled when received, not when handled."""

    name, killer = "ack-early", "test_close_gives_back_what_is_unsettled"

    class consumer(MutantConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            came = await self.inner.receive(limit)
            if self.subscription.group:
                await self.inner.settle([Settlement(delivery) for delivery in came])
            return came

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
            await self.inner.settle(settlements)
            return ()


class Reverse(Mutant):
    """Each batch backwards."""

    name, killer = "reverse", "test_order_of_a_topic_and_its_keys"

    class consumer(MutantConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            return list(await self.inner.receive(limit))[::-1]


class SwapOneKey(Mutant):
    """Once, two messages of one key change places."""

    name, killer = "swap-one-key", "test_order_of_a_topic_and_its_keys"

    class consumer(MutantConsumer):
        swapped = False

        async def receive(self, limit: int) -> Sequence[Delivery]:
            came = list(await self.inner.receive(limit))
            places: dict[str | None, int] = {}
            for index, delivery in enumerate(came):
                first = places.setdefault(delivery.message.key, index)
                if not self.swapped and delivery.message.key is not None and first != index:
                    came[first], came[index] = came[index], came[first]
                    self.swapped = True
            return came


class DuplicateAll(Mutant):
    """Every delivery twice."""

    name, killer = "duplicate-all", "test_nothing_lost_or_repeated"

    class consumer(MutantConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            return [delivery for delivery in await self.inner.receive(max(1, limit // 2)) for _ in (1, 2)]

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
            await self.inner.settle(settlements)
            return ()


class DropOneInAThousand(Mutant):
    """One message in a thousand is accepted and never delivered."""

    name, killer = "drop-1-in-1000", "test_nothing_lost_or_repeated"
    count = 0

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        kept = []
        for message in messages:
            self.count += 1
            if self.count % 1000:
                kept.append(message)
        return await self.inner.publish(kept) if kept else ()


class DropHeaders(Mutant):
    """Headers do not travel."""

    name, killer = "drop-headers", "test_headers_and_unicode"

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        return await self.inner.publish([replace(message, headers=None) for message in messages])


class TruncateSilently(Mutant):
    """Bodies are cut at 64 KiB - 1."""

    name, killer = "truncate-silently", "test_sizes"

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        most = self.capabilities.max_payload
        cut = [m if len(m.body) > most else replace(m, body=m.body[: 2**16 - 1]) for m in messages]
        return await self.inner.publish(cut)


class ZeroTokens(Mutant):
    """``a.>`` matches ``a`` too."""

    name, killer, needs = ">-matches-zero", "test_wildcards", "wildcards"
    prefixes: ClassVar[set[str]] = set()

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        wrong = [m if m.destination not in self.prefixes else replace(m, address=m.topic + ".x") for m in messages]
        return await self.inner.publish(wrong)

    async def subscribe(self, subscription: Subscription) -> Consumer:
        if subscription.pattern.endswith(".>"):
            self.prefixes.add(subscription.pattern[:-2])
        return await super().subscribe(subscription)


class MissNewTopic(Mutant):
    """The first message of a topic that is new under a wildcard is lost."""

    name, killer, needs = "miss-new-topic", "test_new_topic_under_a_wildcard", "wildcards"

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.known: set[str] = set()

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        kept = []
        for message in messages:
            if message.destination in self.known:
                kept.append(message)
            self.known.add(message.destination)
        return await self.inner.publish(kept) if kept else ()

    async def subscribe(self, subscription: Subscription) -> Consumer:
        if not is_pattern(subscription.pattern):
            self.known.add(subscription.pattern)
        return await super().subscribe(subscription)


class ReplayToEveryone(Mutant):
    """What is meant for one group goes to the topic, so to every group."""

    name, killer = "replay-to-everyone", "test_private_address"

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        return await self.inner.publish(
            [replace(m, address=None) if (m.address or "").startswith(GROUP) else m for m in messages]
        )


class IgnoreDelay(Mutant):
    """Delayed messages come at once."""

    name, killer, needs = "ignore-delay", "test_delay", "delay"

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        return await self.inner.publish([replace(message, deliver_at=None) for message in messages])


class ResetCount(Mutant):
    """A redelivery does not know how often it failed."""

    name, killer = "reset-count", "test_retry_comes_back_with_its_count"

    class consumer(MutantConsumer):
        async def receive(self, limit: int) -> Sequence[Delivery]:
            came = await self.inner.receive(limit)
            for delivery in came:
                delivery.failures = 0
            return came


# -- what is settled


class Settles(MutantConsumer):
    """Settles something else than it was told."""

    def instead(self, settlement: Settlement) -> Settlement:
        return settlement

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
        return await self.inner.settle([self.instead(settlement) for settlement in settlements])


class NeverRedeliver(Mutant):
    """A retry is forgotten."""

    name, killer = "never-redeliver", "test_retry_comes_back_with_its_count"

    class consumer(Settles):
        def instead(self, settlement: Settlement) -> Settlement:
            wrong = isinstance(settlement.action, Retry)
            return Settlement(settlement.delivery, outgoing=settlement.outgoing) if wrong else settlement


class HotRetry(Mutant):
    """A retry does not wait."""

    name, killer = "hot-retry", "test_retry_waits"

    class consumer(Settles):
        def instead(self, settlement: Settlement) -> Settlement:
            action = settlement.action
            return (
                Settlement(settlement.delivery, replace(action, delay=0.0)) if isinstance(action, Retry) else settlement
            )


class ReleaseCounts(Mutant):
    """A release is counted as a failure."""

    name, killer = "release-counts", "test_release_counts_nothing"

    class consumer(Settles):
        def instead(self, settlement: Settlement) -> Settlement:
            action, delivery = settlement.action, settlement.delivery
            if isinstance(action, Release):
                return Settlement(delivery, Retry(action.delay, delivery.failures + 1), settlement.outgoing)
            return settlement


class SwallowPartialFailure(Mutant):
    """What failed in a batch is not reported."""

    name, killer = "swallow-partial-failure", "test_publish_of_several_is_accounted_for"

    async def publish(self, messages: Sequence[Message[Any]]) -> Sequence[Failure]:
        await self.inner.publish(messages)
        return ()


class SettleBeforePublish(Mutant):
    """The input is settled, then its outputs are published: when they are rejected, it is too late."""

    name, killer = "settle-before-publish", "test_rejected_output_keeps_its_input"

    async def subscribe(self, subscription: Subscription) -> Consumer:
        consumer = self.Late(await self.inner.subscribe(subscription), subscription)
        consumer.transport = self.inner
        return consumer

    class Late(MutantConsumer):
        transport: Transport

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
            failures = list(await self.inner.settle([Settlement(s.delivery, s.action) for s in settlements]))
            for index, settlement in enumerate(settlements):
                if settlement.outgoing and (refused := await self.transport.publish(settlement.outgoing)):
                    failures.append(Failure(index, refused[0].kind, refused[0].error))
            return failures


class NoFence(Mutant):
    """A late settlement of a lost session passes: its outputs go out, and nobody is told."""

    name, killer, needs = "no-fence", "test_lost_session_is_fenced", "fence"

    async def subscribe(self, subscription: Subscription) -> Consumer:
        consumer = self.Unfenced(await self.inner.subscribe(subscription), subscription)
        consumer.transport = self.inner
        return consumer

    class Unfenced(MutantConsumer):
        transport: Transport

        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[Failure]:
            failures = await self.inner.settle(settlements)
            for failure in failures:
                if failure.kind == "fenced":
                    await self.transport.publish(settlements[failure.index].outgoing)
            return [failure for failure in failures if failure.kind != "fenced"]


class NoRenewal(Mutant):
    """Leases are not renewed."""

    name, killer, needs = "no-renewal", "test_lease_is_renewed", "lease"

    class consumer(MutantConsumer):
        async def extend(self, deliveries: Sequence[Delivery]) -> None:
            pass


class LeakOnClose(Mutant):
    """What is in hand at the end stays with the one that has gone."""

    name, killer = "leak-on-close", "test_close_gives_back_what_is_unsettled"

    class consumer(MutantConsumer):
        async def close(self) -> None:
            self.inner.stop()

    async def close(self) -> None:
        pass


class LoseBufferOnClose(Mutant):
    """What is in hand at the end is thrown away."""

    name, killer = "lose-buffer-on-close", "test_close_gives_back_what_is_unsettled"

    class consumer(MutantConsumer):
        def __init__(self, inner: Consumer, subscription: Subscription) -> None:
            super().__init__(inner, subscription)
            self.held: list[Delivery] = []

        async def receive(self, limit: int) -> Sequence[Delivery]:
            self.held += (came := await self.inner.receive(limit))
            return came

        async def close(self) -> None:
            await self.inner.settle([Settlement(delivery) for delivery in self.held])
            await self.inner.close()


class NoHold(Mutant):
    """An ordered group lets later messages of a failed key pass."""

    name, killer, needs = "no-hold", "test_ordered_group_holds_a_failed_key", "ordered"

    async def subscribe(self, subscription: Subscription) -> Consumer:
        return await super().subscribe(replace(subscription, ordered=False))


class StartRace(Mutant):
    """A group's start is recorded at its first ``receive``, not when ``subscribe`` returns."""

    name, killer = "start-race", "test_new_group_starts_with_new_messages"

    async def subscribe(self, subscription: Subscription) -> Consumer:
        return self.Late(self.inner, subscription)

    class Late:
        def __init__(self, transport: Transport, subscription: Subscription) -> None:
            self.transport, self.subscription = transport, subscription
            self.inner: Consumer | None = None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def stop(self) -> None:
            if self.inner is not None:
                self.inner.stop()

        async def close(self) -> None:
            if self.inner is not None:
                await self.inner.close()

        async def receive(self, limit: int) -> Sequence[Delivery]:
            self.inner = self.inner or await self.transport.subscribe(self.subscription)
            return await self.inner.receive(limit)


class BlindMark(Mutant):
    """A mark is not written, so crashes are not counted."""

    name, killer, needs = "blind-mark", "test_crashes_are_counted_by_mark", "crash_count"

    class consumer(MutantConsumer):
        async def mark(self, delivery: Delivery) -> bool:
            return True
