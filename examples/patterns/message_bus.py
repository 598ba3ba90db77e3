"""Message Bus: apps agree on a bus and its topics. One is added and another taken away; none of the others changes."""

import asyncio

from tidings import App, Topic

BUS = "memory://company"  # in production a URL of all of them: sqlite:////var/lib/bus.db, nats://…, kafka://…
sold = Topic("sales.sold", str)
done: asyncio.Queue[str] = asyncio.Queue()

sales, stock, loyalty = App("sales", BUS), App("stock", BUS), App("loyalty", BUS)


@stock.on(sold)
async def reorder(article: str) -> None:
    done.put_nowait(f"stock reorders {article}")


@loyalty.on(sold)
async def reward(article: str) -> None:
    done.put_nowait(f"loyalty rewards {article}")


async def main() -> None:
    async with sales.connect():
        async with stock:
            await sales.publish(sold, "tea")
            first = [await done.get()]
            async with loyalty:  # plugged in: sales does not know, and stock does not care
                await sales.publish(sold, "cup")
                second = sorted([await done.get(), await done.get()])
        await sales.publish(sold, "pot")  # nobody is there; their groups keep their places
        async with stock, loyalty:
            third = sorted([await done.get(), await done.get()])
    print(*first, *second, *third, sep="\n")
    assert first == ["stock reorders tea"]
    assert second == ["loyalty rewards cup", "stock reorders cup"]
    assert third == ["loyalty rewards pot", "stock reorders pot"]


if __name__ == "__main__":
    asyncio.run(main())
