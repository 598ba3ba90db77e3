"""``tidings records``: what handlers keep, listed, shown and purged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidings import App, State, Table, transact

from .conftest import Shell

stock: Table[dict[str, int]] = Table("shop.stock", dict[str, int])
names = Table("shop.names", bytes)


@pytest.fixture
def kept(shell: Shell) -> None:
    async def fill() -> None:
        app = App("shop", f"sqlite:///{Path(shell.folder) / 'shop.db'}")
        async with app.connect():

            async def put(state: State) -> None:
                for n in range(30):
                    state.put(stock, f"a{n:02}", {"left": n}, due=1.0 if n < 10 else None)
                state.put(names, "x", b"\xff\x00")
                state.put(names, "y", b"plain")

            await transact(app, put)

    asyncio.run(fill())


URL = ("--url", "sqlite:///shop.db")


def test_tables_are_listed_with_their_sizes(shell: Shell, kept: None) -> None:
    listed = shell("records", *URL).out
    assert "shop.stock" in listed
    assert "30" in listed
    assert shell("records", *URL, "--json").json == [
        {"name": "shop.names", "records": 2, "size": 9},
        {"name": "shop.stock", "records": 30, "size": 30 * 3 + 20 * 11 + 10 * 10},
    ]


def test_records_are_shown_by_key(shell: Shell, kept: None) -> None:
    shown = shell("records", "show", "shop.stock", "a0", *URL, "--limit", "2", "--json").json
    assert shown == [{"key": "a00", "value": {"left": 0}, "due": 1.0}, {"key": "a01", "value": {"left": 1}, "due": 1.0}]
    lines = shell("records", "show", "shop.stock", *URL).out.splitlines()
    assert len(lines) == 20
    assert lines[15] == 'a15  {"left":15}'
    assert "due 1970" in lines[0]
    values = [record["value"] for record in shell("records", "show", "shop.names", *URL, "--json").json]
    assert values == ["ff00", "plain"]


def test_they_are_purged_when_one_says_so(shell: Shell, kept: None) -> None:
    assert "would remove the 30 records of shop.stock" in shell("records", "purge", "shop.stock", *URL, "--dry-run").out
    assert "nobody is there to be asked" in shell("records", "purge", "shop.stock", *URL, code=2).err
    done = shell("records", "purge", "shop.stock", "--due", "--yes", *URL, "--json").json
    assert done == {"table": "shop.stock", "records": 30, "purged": 10, "dry_run": False}
    assert shell("records", "purge", "shop.stock", "--yes", *URL).out == "removed 20 records of shop.stock\n"
    assert [table["name"] for table in shell("records", *URL, "--json").json] == ["shop.names"]


def test_what_is_not_there_is_said(shell: Shell, kept: None) -> None:
    missing = shell("records", "show", "shop.stok", *URL, code=2).err
    assert "no table 'shop.stok'" in missing
    assert "shop.stock" in missing
    shell("publish", "orders.placed", "{}", "--url", "sqlite:///other.db")
    assert "no records" in shell("records", "--url", "sqlite:///other.db").err
