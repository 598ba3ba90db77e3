"""EIP: Smart Proxy. Stands before a service, and watches each request and what came of it.

    proxy = SmartProxy(app, prices, to=pricing, report=note)

It answers one service by asking another in its own name: so the replies come to it. It remembers who asked, and passes
each reply on to them. Who asks needs to know nothing of it, nor does who answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from msgspec import Struct

from tidings.app import App
from tidings.channels import Service
from tidings.kernel.clock import current_clock
from tidings.kernel.errors import Duration, InvalidOption, RequestTimeout
from tidings.kernel.message import Message, seconds
from tidings.requests import error_text

from ._pattern import describe
from ._times import Times

Q = TypeVar("Q")
R = TypeVar("R")


class Exchange(Struct, Generic[Q, R], kw_only=True):
    """A request: its id, the app that asked, where the replies go, when (Unix seconds), and what came of it.

    ``took``: seconds; None while it is ``pending``. ``error``: it failed.
    """

    id: str
    asker: str
    address: str | None
    at: float
    request: Q
    replies: list[R] = []
    took: float | None = None
    error: str = ""


class Watched(Struct, frozen=True):
    """What this process has seen: requests that were answered and that failed; seconds, of the last 1,000."""

    answered: int
    failed: int
    p50: float | None
    p99: float | None


class SmartProxy(Generic[Q, R]):
    """Answers ``service`` by asking ``to``, which may be on another bus of the app.

    A request has the deadline of the one that was asked, and at most ``timeout``; a failure is an error reply.
    ``stream``: ``to`` streams its replies, and they are passed on as they come. ``concurrency``: requests at once in
    each process. ``report`` is called with each ``Exchange`` when it has ended; ``pending`` has those that have not, by
    id. Raises ``InvalidOption``.
    """

    def __init__(
        self,
        app: App,
        service: Service[Q, R],
        /,
        *,
        to: Service[Q, R],
        stream: bool = False,
        timeout: Duration = 30.0,
        concurrency: int = 64,
        report: Callable[[Exchange[Q, R]], Any] | None = None,
    ) -> None:
        if (service.name, service.bus) == (to.name, to.bus):
            raise InvalidOption(f"{service!r} cannot be its own proxy", mend="give the service behind another name")
        self.app, self.to, self.report = app, to, report
        self.timeout = seconds(timeout, "timeout")
        self.pending: dict[str, Exchange[Q, R]] = {}
        self.times, self.failed, self.answered = Times(), 0, 0
        answer: Any = app.answer(service, timeout=self.timeout + 1.0, concurrency=concurrency)
        answer(describe(self._streaming() if stream else self._asking(), "smart proxy", asks=[to]))

    def stats(self) -> Watched:
        """What this process has seen so far."""
        return Watched(self.answered, self.failed, self.times.below(0.5), self.times.below(0.99))

    def _asking(self) -> Callable[..., Any]:
        async def smart_proxy(request: Any, message: Message[Any]) -> R:
            with self._watched(request, message) as exchange:
                reply = await self.app.request(self.to, request, timeout=self._left(message))
                exchange.replies.append(reply)
                return reply

        return smart_proxy

    def _streaming(self) -> Callable[..., Any]:
        async def smart_proxy(request: Any, message: Message[Any]) -> AsyncIterator[R]:
            with self._watched(request, message) as exchange:
                async for reply in self.app.request_stream(self.to, request, timeout=self._left(message)):
                    exchange.replies.append(reply)
                    yield reply

        return smart_proxy

    def _left(self, message: Message[Any]) -> float:
        """Seconds until nobody waits for a reply any more."""
        if message.expires_at is None:
            return self.timeout
        left = message.expires_at - current_clock().now()
        if left <= 0:
            raise RequestTimeout("its deadline has passed")
        return min(left, self.timeout)

    @contextmanager
    def _watched(self, request: Q, message: Message[Any]) -> Iterator[Exchange[Q, R]]:
        clock = current_clock()
        exchange: Exchange[Q, R] = Exchange(
            id=message.id, asker=message.source, address=message.reply_to, at=clock.now(), request=request
        )
        began, self.pending[message.id] = clock.monotonic(), exchange
        try:
            yield exchange
        except Exception as error:
            exchange.error = error_text(error)
            raise
        finally:
            del self.pending[message.id]
            exchange.took = clock.monotonic() - began
            self._ended(exchange, exchange.took)

    def _ended(self, exchange: Exchange[Q, R], took: float) -> None:
        self.times.add(took)
        if exchange.error:
            self.failed += 1
        else:
            self.answered += 1
        if self.report is not None:
            self.report(exchange)
