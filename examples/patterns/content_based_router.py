"""Content-Based Router: `match` in a handler says where a message goes by what is in it."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic


class Widget(Struct, tag=True):
    id: str


class Gadget(Struct, tag=True):
    id: str
    watts: int


app = App("shop", "memory://")
items = Topic("items", Widget | Gadget)
widgets, gadgets, heavy = Topic("widgets", Widget), Topic("gadgets", Gadget), Topic("gadgets.heavy", Gadget)
shelves: asyncio.Queue[tuple[str, str]] = asyncio.Queue()


@app.on(items)
async def route(item: Widget | Gadget) -> Message[Widget] | Message[Gadget]:
    match item:
        case Widget():
            return widgets(item)
        case Gadget(watts=watts) if watts > 1000:
            return heavy(item)
        case Gadget():
            return gadgets(item)


@app.on(widgets)
async def store_widget(widget: Widget) -> None:
    shelves.put_nowait(("widgets", widget.id))


@app.on("gadgets")
@app.on("gadgets.heavy", group="shop.store_heavy")
async def store_gadget(gadget: Gadget, message: Message[Gadget]) -> None:
    shelves.put_nowait((message.topic, gadget.id))


async def main() -> None:
    async with app:
        await app.publish_many([items(Widget("w")), items(Gadget("g", 5)), items(Gadget("h", 2000))])
        stored = sorted([await shelves.get() for _ in range(3)])
    print(stored)
    assert stored == [("gadgets", "g"), ("gadgets.heavy", "h"), ("widgets", "w")]
    assert await route(Widget("x")) == widgets(Widget("x"))


if __name__ == "__main__":
    asyncio.run(main())
