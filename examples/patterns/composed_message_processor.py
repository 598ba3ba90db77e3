"""Composed message processor: each line of an order is checked by the stock that has it; the order comes out whole."""

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic
from tidings.patterns import answer, composed_message_processor


class Line(Struct):
    kind: str
    count: int


class Order(Struct):
    id: str
    lines: list[Line]


class Checked(Struct):
    kind: str
    there: bool


app = App("shop", "memory://")
orders = Topic("orders", Order)
checked = Topic("lines.checked", Checked)
done = Topic("orders.checked", list[Checked])
widgets, gadgets = Topic("stock.widgets", Line), Topic("stock.gadgets", Line)
came: asyncio.Queue[Message[list[Checked]]] = asyncio.Queue()


def stock_of(line: Line) -> Topic[Line]:
    return widgets if line.kind == "widget" else gadgets


@composed_message_processor(
    app, orders, split=lambda order: order.lines, parts=stock_of, results=checked, to=done, timeout="1m"
)
def whole(lines: list[Checked]) -> list[Checked]:
    return lines


@app.on(widgets)
async def check_widgets(message: Message[Line]) -> Message[Checked]:
    return answer(message, checked(Checked("widget", message.data.count < 10)))


@app.on(gadgets)
async def check_gadgets(message: Message[Line]) -> Message[Checked]:
    return answer(message, checked(Checked("gadget", message.data.count < 3)))


@app.on(done)
async def confirm(message: Message[list[Checked]]) -> None:
    await came.put(message)


async def main() -> None:
    order = Order("o1", [Line("widget", 5), Line("gadget", 5), Line("widget", 1)])
    async with app:
        await app.publish(orders, order, key=order.id)
        message = await came.get()
    print(message.key, *message.data)
    assert message.data == [Checked("widget", True), Checked("gadget", False), Checked("widget", True)]
    assert (message.key, message.header("aggregate")) == ("o1", "complete")


if __name__ == "__main__":
    asyncio.run(main())
