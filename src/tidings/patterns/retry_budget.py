"""Retries are a share of what is handled, and no more (beyond the book: Retry Budget).

When something that all messages need is down, each is tried eight times: eight times the load on what just broke. A
budget ends that: what comes for the first time earns a part of a retry, each retry costs a whole one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidings.kernel.errors import Duration, InvalidOption, Reject, Retry, text_of
from tidings.kernel.handler import Many, One, Outcome, Outgoing
from tidings.kernel.message import seconds
from tidings.kernel.outcome import Backoff, Kind, classify
from tidings.kernel.transport import Delivery

from ._pattern import describe

PLAIN = Backoff()


class RetryBudget:
    """A middleware that lets at most ``share`` of a handler's deliveries be retries, in this process.

    ``reserve``: retries that may be saved for bad times, and are there at the start. Beyond it a message that fails is
    tried again after ``delay``, or, without one, goes to the dead letters at once, as by ``Reject``. ``Retry`` counts;
    ``Reject``, ``Defer`` and ``Skip`` do not, nor what ends without an exception: a timeout, a crash. One budget may be
    given to several handlers. ``spent``: retries that it allowed; ``refused``: those it did not. Raises
    ``InvalidOption``.
    """

    def __init__(self, share: float = 0.2, *, reserve: int = 20, delay: Duration | None = None) -> None:
        if not 0 <= share <= 1:
            raise InvalidOption(f"share cannot be {share!r}", mend="of all deliveries: 0 to 1")
        if isinstance(reserve, bool) or not isinstance(reserve, int) or reserve < 1:
            raise InvalidOption(f"reserve cannot be {reserve!r}", mend="retries: at least 1")
        self.share, self.reserve = share, reserve
        self.delay = None if delay is None else seconds(delay, "delay")
        self.left = float(reserve)
        self.spent = self.refused = 0
        describe(self, "retry budget")

    def __call__(self, one: One) -> One:
        async def budgeted(delivery: Delivery) -> Outgoing:
            self._earn(delivery)
            try:
                return await one(delivery)
            except Exception as error:
                if self._allows(error):
                    raise
                raise self._instead(error) from error

        return budgeted

    def many(self, many: Many) -> Many:
        """The same around a handler of batches. One that fails as a whole is run again singly, and only that costs."""

        async def budgeted(deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
            for delivery in deliveries:
                self._earn(delivery)
            try:
                outcomes = await many(deliveries)
            except Exception as error:
                if len(deliveries) > 1 or self._allows(error):
                    raise
                raise self._instead(error) from error
            return [o if isinstance(o, tuple) or self._allows(o) else self._instead(o) for o in outcomes]

        return budgeted

    def _earn(self, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            self.left = min(self.left + self.share, self.reserve)

    def _allows(self, error: BaseException) -> bool:
        if classify(error, PLAIN) is not Kind.FAILED:
            return True
        if self.left < 1:
            self.refused += 1
            return False
        self.left -= 1
        self.spent += 1
        return True

    def _instead(self, error: BaseException) -> Exception:
        why = f"the retry budget is used up: {type(error).__name__}: {text_of(error)}"
        return Reject(why) if self.delay is None else Retry(self.delay, why)
