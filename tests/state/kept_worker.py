"""An app that keeps records, to be killed: each payment is booked once, though it may be sent twice; every tenth of an
account is told, and windows of what was told are counted."""

from __future__ import annotations

from msgspec import Struct

from tidings import App, Message, State, Table, Topic
from tidings.middleware.dedup import Dedup
from tidings.patterns import Tumbling, Window, windowed


class Payment(Struct):
    account: str
    number: int  # from 1, in its account


class Balance(Struct):
    payments: int = 0
    sum: int = 0


class Told(Struct):
    account: str
    payments: int
    sum: int


class Count(Struct):
    count: int


paid, told, counts = Topic("bank.paid", Payment), Topic("bank.told", Told), Topic("bank.counts", Count)
balances = Table("bank.balances", Balance)
ACCOUNTS, WINDOW = 5, 40.0


def add(before: Count | None, payment: Payment) -> Count:
    return Count((before.count if before else 0) + 1)


def counted(count: Count, window: Window) -> Count:
    return count


def app(url: str) -> App:
    """The app on one bus; or, "broker url|store url", on a broker, with a store beside it."""
    own, _, beside = url.partition("|")
    app = App("bank", own, state=beside) if beside else App("bank", own)

    @app.on(paid, middleware=[Dedup()], concurrency=8)
    async def book(payment: Payment, state: State) -> Message[Told] | None:
        before = await state.get(balances, payment.account) or Balance()
        after = Balance(before.payments + 1, before.sum + payment.number)
        state.put(balances, payment.account, after)
        if after.payments % 10:
            return None
        return told(Told(payment.account, after.payments, after.sum), key=payment.account)

    windowed(
        app, paid, Tumbling(WINDOW), by=lambda p: p.account, time=lambda p: float(p.number), fold=add, to=counts,
        watermark="key", group="bank.windows", lateness=1e6,
    )(counted)  # fmt: skip
    return app
