"""Shared Database: two apps keep the stock in one table. Each works on what it read, or runs again; none oversells."""

import asyncio
import tempfile

from tidings import App, Message, State, Table, Topic

ordered = Topic("orders.placed", str)
delivered = Topic("stock.delivered", str)
answers = Topic("orders.answered", str)
stock = Table("stock", int)
told: asyncio.Queue[str] = asyncio.Queue()


def apps(url: str) -> tuple[App, App]:
    shop, warehouse = App("shop", url), App("warehouse", url)

    @shop.on(ordered)
    async def sell(article: str, state: State) -> Message[str]:
        left = await state.get(stock, article) or 0
        if not left:
            return answers("sold out")
        state.put(stock, article, left - 1)  # with the answer and the settlement, or not at all
        return answers("sold")

    @warehouse.on(delivered)
    async def shelve(article: str, state: State) -> None:
        state.put(stock, article, (await state.get(stock, article) or 0) + 1)

    @shop.on(answers)
    async def tell(answer: str) -> None:
        told.put_nowait(answer)

    return shop, warehouse


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shop, warehouse = apps(f"sqlite:///{folder}/shop.db")
        async with shop, warehouse:
            await warehouse.publish_many([delivered("lamp") for _ in range(20)])
            while warehouse.stats()["warehouse.shelve"].handled < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await shop.publish_many([ordered("lamp") for _ in range(50)])
            found = [await told.get() for _ in range(50)]
    print({answer: found.count(answer) for answer in sorted(set(found))})
    assert (found.count("sold"), found.count("sold out")) == (20, 30)


if __name__ == "__main__":
    asyncio.run(main())
