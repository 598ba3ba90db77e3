"""What ``tidings run`` says of handlers that fail and are tried again."""

from __future__ import annotations

from .conftest import Shell

SHOP = """
from pathlib import Path
from tidings import App, Backoff, Defer, Partial, Topic
from tidings.middleware.log import Log

app = App("shop", "sqlite:///shop.db", backoff=Backoff(attempts=3, first="10ms"))
placed, many, later = Topic("placed", int), Topic("many", int), Topic("later", int)

@app.on(placed)
async def bill(n: int) -> None:
    print("no luck", flush=True)
    raise ConnectionError(f"no provider for {n}")

@app.on(many, batch=100)
async def pack(numbers: list[int]) -> None:
    raise Partial({at: ValueError("odd") for at, n in enumerate(numbers) if n % 2})

@app.on(later)
async def wait(n: int) -> None:
    if not Path("deferred").exists():
        Path("deferred").touch()
        raise Defer("10ms")
    print("waited", n, flush=True)
"""


def test_each_failed_attempt_is_told(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("run", "shop:app")
    running.until("shop.wait")
    nowhere("publish", "shop:app", "placed", "7")
    running.until("dead letter of shop.bill")
    assert running.end() == 0
    told = [line for line in running.lines if "shop.bill failed" in line]
    said = "and is tried again: ConnectionError: no provider for 7"
    assert [line.partition("failed, ")[2].strip() for line in told] == [
        f"attempt 1 of 3, {said}",
        f"attempt 2 of 3, {said}",
    ]
    frames = [line.strip() for line in running.lines if line.startswith("  File")]
    assert len(frames) == 1  # of the first attempt, and only the user's
    assert frames[0].endswith("in bill")
    assert "shop.py" in frames[0]


def test_items_of_a_batch_are_told_and_what_was_only_deferred_is_not(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    running = nowhere.start("run", "shop:app")
    running.until("shop.wait")
    nowhere("publish", "shop:app", "many", "1")
    nowhere("publish", "shop:app", "later", "5")
    running.until("dead letter of shop.pack")
    running.until("waited 5")
    assert running.end() == 0
    told = [line for line in running.lines if "tried again" in line]
    assert len(told) == 2
    assert all("shop.pack failed" in line and "ValueError: odd" in line for line in told)


def test_many_failures_do_not_fill_the_log(nowhere: Shell) -> None:
    often = SHOP.replace('first="10ms")', 'first="1ms", factor=1), breaker=None').replace("attempts=3", "attempts=100")
    nowhere.write("shop.py", often)
    running = nowhere.start("run", "shop:app")
    running.until("shop.wait")
    nowhere("publish", "shop:app", "placed", "7")
    running.until("shop.bill fails often")
    told = sum("shop.bill failed" in line for line in running.lines)
    running.until("dead letter of shop.bill")
    assert running.end() == 0
    assert told == 20
    assert sum("shop.bill failed" in line for line in running.lines) < 99, "what was too much is not told later"


def test_a_deadline_is_told_and_what_its_middleware_rejects_is_not(nowhere: Shell) -> None:
    nowhere.write(
        "shop.py",
        """
import asyncio
from tidings import App, Backoff, Reject

def strict(one):
    async def rejecting(delivery):
        try:
            return await one(delivery)
        except ValueError as error:
            raise Reject("never") from error

    return rejecting

app = App("shop", "sqlite:///shop.db", backoff=Backoff(attempts=2, first="10ms"), middleware=[strict])

@app.on("slow", timeout="200ms")
async def wait(n: int) -> None:
    await asyncio.sleep(3600)

@app.on("wrong")
async def check(n: int) -> None:
    raise ValueError("wrong")
""",
    )
    running = nowhere.start("run", "shop:app")
    running.until("shop.check")
    nowhere("publish", "shop:app", "wrong", "1")
    running.until("dead letter of shop.check")
    nowhere("publish", "shop:app", "slow", "1")
    told = running.until("tried again")
    assert "shop.wait failed, attempt 1 of 2" in told
    assert "HandlerTimeout" in told
    assert running.end() == 0
    assert not any("shop.check failed" in line for line in running.lines)


def silent(shell: Shell, program: str) -> bool:
    """Whether nothing is said of a handler that failed three times."""
    shell.write("shop.py", program)
    running = shell.start("run", "shop:app")
    running.until("shop.wait")
    shell("publish", "shop:app", "placed", "7")
    for _ in range(3):
        running.until("no luck")
    assert running.end() == 0
    return not any("tried again" in line for line in running.lines)


def test_nothing_is_told_twice_or_to_nobody(nowhere: Shell) -> None:
    assert not silent(nowhere, SHOP)
    assert silent(nowhere, SHOP.replace("@app.on(placed)", "@app.on(placed, middleware=[Log()])"))
    nowhere.env["TIDINGS_LOG"] = "WARNING"
    assert silent(nowhere, SHOP)
