"""``tidings request``."""

from __future__ import annotations

import json

from .conftest import Running, Shell


def test_reply(shell: Shell, shop: Running) -> None:
    assert shell("request", "prices.quote", "hello").out == "7.5\n"
    assert shell("request", "prices.quote", '"hello"', "--json").json == 7.5
    assert shell("request", "shop:app", "prices.quote", "abc").out == "4.5\n"
    assert shell("request", "prices.quote", input="ab\n").out == "3.0\n"


def test_streamed_replies(shell: Shell, shop: Running) -> None:
    assert shell("request", "count", "3", "--stream").out == "0\n1\n2\n"
    assert shell("request", "count", "0", "--stream").out == ""


def test_the_answerers_error(shell: Shell, shop: Running) -> None:
    failed = shell("request", "prices.quote", '""', code=4)
    assert "TDG-E043" in failed.err
    assert "LookupError: quote what?" in failed.err


def test_nobody_answers(shell: Shell, shop: Running) -> None:
    failed = shell("request", "prices.qoute", "1", "--json", code=4)
    assert json.loads(failed.err)["error"]["code"] == "TDG-E041"


def test_too_late(shell: Shell) -> None:
    source = """
import asyncio
from tidings import App
app = App("slow")
@app.answer("slow")
async def slow(n: int) -> int:
    await asyncio.Event().wait()
"""
    shell.write("slow.py", source.replace('App("slow")', 'App("slow", grace=0.1)'))
    running = shell.start("run", "slow")
    running.until("listens on")
    assert "TDG-E042" in shell("request", "slow", "1", "--timeout", "300ms", code=4).err
    running.process.kill()
