"""The payload of every scenario: eight fields, about 200 bytes of JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from pydantic import BaseModel


class Order(Struct):
    id: str
    n: int
    sku: str
    amount: float
    a: str
    b: str
    c: str
    d: str


def order(n: int = 3) -> Order:
    return Order(f"order-{n:07d}", n, "sku-9", 12.5, "x" * 20, "y" * 20, "z" * 30, "w" * 30)


def body(n: int = 3) -> bytes:
    return msgspec.json.encode(order(n))


def order_model() -> type[BaseModel]:
    """The same as a pydantic model; only those who want it pay for the import."""
    from pydantic import BaseModel

    class OrderModel(BaseModel):
        id: str
        n: int
        sku: str
        amount: float
        a: str
        b: str
        c: str
        d: str

    return OrderModel
