"""Message Broker: senders know one topic. One app decides where messages go; only that one knows receivers."""

import asyncio

from msgspec import Struct

from tidings import App, Message, Topic


class Claim(Struct):
    id: str
    kind: str
    amount: int


BUS = "memory://insurance"
filed = Topic("claims.filed", Claim)
cars, homes, checks = (Topic(f"desk.{name}", Claim) for name in ("cars", "homes", "checks"))
received: asyncio.Queue[str] = asyncio.Queue()

web, broker, desks = App("web", BUS), App("broker", BUS), App("desks", BUS)


@broker.on(filed)
async def route(claim: Claim) -> Message[Claim] | list[Message[Claim]]:
    match claim:
        case Claim(kind="car", amount=amount) if amount < 1000:
            return cars(claim, key=claim.id)
        case Claim(kind="car"):
            return [cars(claim, key=claim.id), checks(claim, key=claim.id)]
        case _:
            return homes(claim, key=claim.id)


@desks.on("desk.*")
async def receive(message: Message[Claim]) -> None:
    received.put_nowait(f"{message.topic}: {message.data.id}")


async def main() -> None:
    async with web.connect(), broker, desks:
        await web.publish_many([filed(Claim("a", "car", 200)), filed(Claim("b", "car", 9000))])
        await web.publish(filed, Claim("c", "home", 50))
        found = sorted([await received.get() for _ in range(4)])
    print(*found, sep="\n")
    assert found == ["desk.cars: a", "desk.cars: b", "desk.checks: b", "desk.homes: c"]


if __name__ == "__main__":
    asyncio.run(main())
