"""Message Endpoint: a handler is a function that knows no bus; the app is its endpoint. A script has `connect`."""

import asyncio
import tempfile

import tidings
from tidings import App, Topic

placed = Topic("orders.placed", int)
totals = Topic("orders.total", int)


async def add_tax(cents: int) -> int:
    """Of the business: nothing in it speaks of messages."""
    return cents + cents // 5


def order_from_a_script(url: str) -> None:
    """No event loop: the endpoint of synchronous programs."""
    with tidings.connect(url, name="till") as till:
        till.publish(placed, 1000)


async def main() -> None:
    assert await add_tax(100) == 120  # called, like any function
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/shop.db"
        app = App("shop", url)
        app.on(placed, to=totals)(add_tax)
        told: asyncio.Queue[int] = asyncio.Queue()

        @app.on(totals)
        async def tell(cents: int) -> None:
            told.put_nowait(cents)

        async with app:
            await asyncio.to_thread(order_from_a_script, url)
            total = await told.get()
    print(f"1000 is {total} with tax")
    assert total == 1200


if __name__ == "__main__":
    asyncio.run(main())
