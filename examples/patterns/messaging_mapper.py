"""Messaging Mapper: a domain object that knows nothing of messages, a message that knows nothing of it, and a mapper
between them: two plain functions."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from msgspec import Struct

from tidings import App, Message, Topic


class Account:
    """A domain object: it has rules, and no form in which it could travel."""

    def __init__(self, iban: str, balance: Decimal) -> None:
        self.iban, self._balance = iban, balance

    def withdraw(self, amount: Decimal) -> None:
        if amount > self._balance:
            raise ValueError("not that much")
        self._balance -= amount

    @property
    def balance(self) -> Decimal:
        return self._balance


class AccountChanged(Struct):
    """What travels: plain data, in a form that stays when the domain changes."""

    iban: str
    cents: int


app = App("bank", "memory://")
changed = Topic("accounts.changed", AccountChanged)
seen: asyncio.Queue[Account] = asyncio.Queue()


def to_message(account: Account) -> Message[AccountChanged]:
    return changed(AccountChanged(account.iban, int(account.balance * 100)), key=account.iban)


def from_payload(payload: AccountChanged) -> Account:
    return Account(payload.iban, Decimal(payload.cents) / 100)


@app.on(changed)
async def mirror(payload: AccountChanged) -> None:
    seen.put_nowait(from_payload(payload))


async def main() -> None:
    account = Account("IT60X05428", Decimal("100.00"))
    account.withdraw(Decimal("19.99"))
    async with app:
        await app.publish(to_message(account))
        copy = await seen.get()
    print(copy.iban, copy.balance)
    assert (copy.iban, copy.balance) == ("IT60X05428", Decimal("80.01"))


if __name__ == "__main__":
    asyncio.run(main())
