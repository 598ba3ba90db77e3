"""Webhooks: a shop tells a bank of its orders, over HTTP, signed, and the bank takes each once."""

import asyncio
import socket
import tempfile

import uvicorn
from msgspec import Struct

from tidings import App, Message, Topic
from tidings.gateway import WebhookIn, WebhookOut, asgi, new_secret, webhooks

SECRET = new_secret()  # in earnest "env:BANK_SECRET", on both sides


class Order(Struct):
    id: int
    cents: int


placed = Topic("orders.placed", Order)
received: asyncio.Queue[Message[Order]] = asyncio.Queue()


def shop(folder: str, port: int) -> App:
    app = App("shop", f"sqlite:///{folder}/shop.db")
    bank = WebhookOut(
        name="bank",
        pattern="orders.>",
        url=f"http://127.0.0.1:{port}/webhooks/shop",
        secrets=(SECRET,),
        private=True,  # plain HTTP, to this machine
    )
    webhooks(app, [bank])
    return app


def bank(folder: str) -> App:
    app = App("bank", f"sqlite:///{folder}/bank.db")

    @app.on("shop.orders.placed")
    async def charge(order: Message[Order]) -> None:
        received.put_nowait(order)

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listening:
        async with shop(folder, listening.getsockname()[1]) as sender, bank(folder) as receiver:
            await sender.publish(placed, Order(7, 4200), key="ann", id="order-7")
            http = asgi(receiver, webhooks_in=[WebhookIn(name="shop", topic="shop.{type}", secrets=(SECRET,))])
            server = uvicorn.Server(uvicorn.Config(http, log_level="warning"))
            serving = asyncio.create_task(server.serve([listening]))
            order = await received.get()
            server.should_exit = True
            await serving
    print(order.topic, order.data)
    assert (order.id, order.key, order.data) == ("shop/order-7", "ann", Order(7, 4200))


if __name__ == "__main__":
    asyncio.run(main())
