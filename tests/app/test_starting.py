"""What starting costs on a bus with a large backlog: counting messages takes time in proportion to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from tests.kernel.rig import virtual

from tidings import App, Topic
from tidings.kernel.transport import GroupInfo, TopicInfo
from tidings.transports.memory import Memory, MemoryTransport

placed = Topic("orders.placed", int)


class Counting(MemoryTransport):
    """Counts how often it has to look through all that is retained."""

    counted = 0

    async def topics(self, pattern: str = ">") -> Sequence[TopicInfo]:
        self.counted += 1
        return await super().topics(pattern)

    async def groups(self, pattern: str = ">") -> Sequence[GroupInfo]:
        self.counted += 1
        return await super().groups(pattern)


class Given(Struct, frozen=True):
    """Options of a transport that is there already."""

    made: Any

    def transport(self) -> Any:
        return self.made


@virtual
async def test_an_app_whose_groups_are_known_counts_once() -> None:
    async def bill(order: int) -> None: ...

    async with App("keeper", Memory(name="starting")).connect():
        counted = []
        for _ in range(2):
            transport = Counting(Memory(name="starting"))
            app = App("shop", Given(transport))
            app.on(placed)(bill)
            async with app:
                counted.append(transport.counted)
    assert counted[0] > 1, "a new group is told what it skips"
    assert counted[1] == 1
