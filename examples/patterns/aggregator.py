"""Aggregator: the lines of an order become the order, when all are there or after a while; a restart loses none."""

import asyncio
import tempfile

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import aggregator


class Line(Struct):
    order: str
    sku: str


class Packed(Struct):
    order: str
    skus: list[str]


lines = Topic("orders.lines", Line)
packed = Topic("orders.packed", Packed)


def shop(url: str) -> tuple[App, asyncio.Queue[Message[Packed]]]:
    app = App("shop", url)
    done: asyncio.Queue[Message[Packed]] = asyncio.Queue()

    @aggregator(app, lines, by=lambda line: line.order, size=3, timeout="500ms", to=packed)
    def pack(found: list[Line]) -> Packed:
        return Packed(found[0].order, [line.sku for line in found])

    @app.on(packed)
    async def ship(message: Message[Packed]) -> None:
        await done.put(message)

    return app, done


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app, _ = shop(f"sqlite:///{folder}/shop.db")
        async with app:
            await app.publish(lines, Line("o1", "nut"))
            await app.publish(lines, Line("o1", "bolt"))

        app, done = shop(f"sqlite:///{folder}/shop.db")  # as after a deployment
        async with app:
            await app.publish(lines, Line("o1", "washer"))
            await app.publish(lines, Line("o2", "nut"))
            found = [await done.get(), await done.get()]
    how = {message.data.order: (message.data.skus, message.header("aggregate")) for message in found}
    print(*how.items(), sep="\n")
    assert how == {"o1": (["nut", "bolt", "washer"], "complete"), "o2": (["nut"], "timeout")}


if __name__ == "__main__":
    asyncio.run(main())
