"""Message Dispatcher: one subscription, several performers; those of one key one after the other, others at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from tidings import App, Reject, Topic


class Task(Struct):
    account: str
    kind: str
    n: int


app = App("bank", "memory://")
tasks = Topic("tasks", Task)
done: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
side_by_side = asyncio.Barrier(2)


async def deposit(task: Task) -> None:
    done.put_nowait((task.account, "deposit", task.n))


async def audit(task: Task) -> None:
    await side_by_side.wait()  # two audits, of two accounts, at the same time
    done.put_nowait((task.account, "audit", task.n))


performers: dict[str, Callable[[Task], Awaitable[None]]] = {"deposit": deposit, "audit": audit}


@app.on(tasks, concurrency=8)
async def dispatch(task: Task) -> None:
    performer = performers.get(task.kind)
    if performer is None:
        raise Reject(f"nobody performs {task.kind!r}")
    await performer(task)  # its failure is the message's failure


async def main() -> None:
    async with app:
        work = [Task(account, kind, n) for n, kind in enumerate(("audit", "deposit", "deposit")) for account in "ab"]
        await app.publish_many([tasks(task, key=task.account) for task in work])
        await app.publish(tasks, Task("a", "dance", 9))
        performed = [await done.get() for _ in range(6)]
    for account in "ab":
        print(account, *[f"{kind} {n}" for name, kind, n in performed if name == account], sep=", ")
    for account in "ab":
        assert [n for name, _, n in performed if name == account] == [0, 1, 2]


if __name__ == "__main__":
    asyncio.run(main())
