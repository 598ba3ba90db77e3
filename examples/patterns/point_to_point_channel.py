"""Point-to-Point Channel: two replicas run the same handler; each message goes to one of them."""

import asyncio
from collections import Counter

from tidings import App, Topic

parcels = Topic("parcels.packed", int)
loaded: asyncio.Queue[tuple[str, int]] = asyncio.Queue()


def replica(van: str) -> App:
    """One of the app's processes; here both run in this one."""
    app = App("depot", "memory://depot")

    @app.on(parcels)  # one group, "depot.load", whoever runs it
    async def load(parcel: int) -> None:
        loaded.put_nowait((van, parcel))

    return app


async def main() -> None:
    async with replica("red van") as red, replica("blue van"):
        await red.publish_many([parcels(number) for number in range(100)])
        found = [await loaded.get() for _ in range(100)]
    print(dict(Counter(van for van, _ in found)))
    assert sorted(parcel for _, parcel in found) == list(range(100))


if __name__ == "__main__":
    asyncio.run(main())
