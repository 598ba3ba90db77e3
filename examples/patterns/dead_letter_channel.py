"""Dead Letter Channel: what fails to the last attempt is kept as it came, and replayed to who failed when it is mended.

``tidings dead ls``, ``show``, ``edit`` and ``replay`` do this from a terminal.
"""

import asyncio
from typing import Any

from tidings import App, Backoff, Message, Topic
from tidings.letters import revived

app = App("shop", "memory://", backoff=Backoff(attempts=3, first="1ms"))
placed = Topic("orders.placed", str)
printed: asyncio.Queue[str] = asyncio.Queue()
letters: asyncio.Queue[Message[Any]] = asyncio.Queue()
printer = {"paper": False}


@app.on(placed)
async def label(order: str) -> None:
    if not printer["paper"]:
        raise OSError("no paper")
    printed.put_nowait(order)


@app.on("_dead.shop.label")
async def tell(letter: Message[Any]) -> None:
    letters.put_nowait(letter)


async def main() -> None:
    async with app:
        await app.publish(placed, "o1")
        letter = await letters.get()
        print(letter.topic, letter.header("tdgfailures"), "times:", letter.header("tdgdetail"))
        printer["paper"] = True
        await app.publish(revived(letter, "shop.label"))  # to that group, and nobody else
        order = await printed.get()
    assert (letter.body, letter.header("tdgfailures"), letter.header("tdgerror")) == (b"o1", "3", "OSError")
    assert order == "o1"


if __name__ == "__main__":
    asyncio.run(main())
