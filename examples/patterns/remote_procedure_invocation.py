"""Remote Procedure Invocation: ask a service by name and wait for its reply, wherever it runs."""

import asyncio

from msgspec import Struct

from tidings import App, RequestError, Service


class Quote(Struct):
    article: str
    count: int


class Price(Struct):
    cents: int


BUS = "memory://shop"
prices = Service("prices.quote", Quote, Price)
catalogue, till = App("catalogue", BUS), App("till", BUS)
LIST = {"tea": 450, "cup": 900}


@catalogue.answer(prices)
async def quote(asked: Quote) -> Price:
    return Price(LIST[asked.article] * asked.count)


async def main() -> None:
    async with catalogue, till.connect():
        price = await till.request(prices, Quote("tea", 2), timeout="5s")
        said = ""
        try:
            await till.request(prices, Quote("gold", 1), timeout="5s")
        except RequestError as error:  # what the other side raised
            said = error.args[0]
    print(price, said, sep="\n")
    assert price == Price(900)
    assert "KeyError: 'gold'" in said


if __name__ == "__main__":
    asyncio.run(main())
