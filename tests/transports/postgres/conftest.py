"""A schema of its own for each test, on the session's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from tests.servers import server

from tidings.kernel.message import new_id


@pytest.fixture
def place() -> Iterator[str]:
    url, namespace = server("postgres").url, f"t{new_id().replace('-', '')[-12:]}"
    yield f"{url}?namespace={namespace}"

    async def drop() -> None:
        con = await asyncpg.connect(url)
        await con.execute(f"DROP SCHEMA IF EXISTS {namespace} CASCADE")
        await con.close()

    asyncio.run(drop())
