"""Servers that do not answer, and streams that two processes mend at once."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, suppress

import pytest
from tests.servers import fresh
from tests.transports.nats.helpers import bus, message

from tidings import App


@pytest.mark.slow
async def test_servers_that_are_silent_leave_time_for_the_last() -> None:
    """Whichever the client tries first: two connections get no answer, the third goes through."""
    with fresh("nats") as mine:
        tried, over = list[int](), asyncio.Event()

        async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tried.append(writer.get_extra_info("sockname")[1])
            if len(tried) > 2:
                there = await asyncio.open_connection("127.0.0.1", mine.port)
                await asyncio.gather(piped(reader, there[1]), piped(there[0], writer))
            await over.wait()
            writer.close()

        async with AsyncExitStack() as stack:
            doors = [await stack.enter_async_context(await asyncio.start_server(door, "127.0.0.1", 0)) for _ in "abc"]
            stack.callback(over.set)
            ports = [each.sockets[0].getsockname()[1] for each in doors]
            url = f"nats://{','.join(f'127.0.0.1:{port}' for port in ports)}"
            async with App("shop", url).connect():
                assert sorted(tried) == sorted(ports)


async def piped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while some := await reader.read(65_536):
            writer.write(some)
    writer.close()


async def test_takes_no_subject_out_of_a_stream_that_it_mends() -> None:
    """As after a race of one that mends with one that adds its topics: the stream lacks what either wrote."""
    async with bus() as first:
        assert not await first.publish([message()])
        config = (await first.ask("stream_info", first.name)).config
        kept = [s for s in config.subjects if not re.search(r"\.(orders.*|_tick\.>)$", s)]
        wanted = {f"{first.prefix}{name}" for name in ("orders", "orders.>", "_tick.>")}
        await first.ask("update_stream", config, subjects=kept)
        async with bus(keep=True, namespace=first.options.namespace):
            assert wanted <= set((await first.ask("stream_info", first.name)).config.subjects)
        await first.ask("update_stream", config, subjects=kept)
        assert not await first.publish([message(topic="parcels.sent")])
        assert wanted <= set((await first.ask("stream_info", first.name)).config.subjects)
