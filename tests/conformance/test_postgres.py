"""``postgresql://`` passes the suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from tests.servers import server

from tidings.kernel.transport import Transport
from tidings.testing.conformance import Bus, Conformance, Faults
from tidings.testing.conformance.buses import served


def dropped(url: str, namespace: str) -> None:
    async def drop() -> None:
        con = await asyncpg.connect(url)
        await con.execute(f'DROP SCHEMA IF EXISTS "{namespace}" CASCADE')
        await con.close()

    asyncio.run(drop())


async def foreign(transport: Transport, topic: str, body: bytes) -> None:
    """As any client of PostgreSQL would."""
    client: Any = transport.client
    con = await client()
    bus: Any = transport
    await con.execute(f"SELECT {bus.options.namespace}.send($1, $2, content_type => '')", topic, body)
    await con.close()


@pytest.fixture
def bus() -> Iterator[Bus]:
    url = server("postgres").url
    fresh = replace(served(url), foreign=foreign)
    yield fresh
    options: Any = fresh.options(1.0)
    dropped(url, options.namespace)


class TestPostgres(Conformance): ...


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestPostgresFaults(Faults): ...
