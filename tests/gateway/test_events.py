"""Server-Sent Events: what is written, resuming, groups, limits, and what becomes of those who do not read."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.servers import server
from tests.state.stores import url_of
from tests.transports.consuming import until

from tidings import App, Message
from tidings.gateway.events import PIECE, identified, lines, pieces
from tidings.gateway.limits import Limits
from tidings.gateway.rights import ANYONE, EVERYTHING, Rights
from tidings.gateway.settings import Settings
from tidings.gateway.web import listening
from tidings.kernel.transport import Inspectable

from .over_http import problem
from .serving import known, served
from .streaming import Events, following, silent, staged, unwritable

KINDS = ["memory", "sqlite"]
TCP_REPAIR = 19  # linux/tcp.h


def app_over(kind: str, folder: Path) -> App:
    return App("gateway", url_of(kind, folder))


async def publish(client: httpx.AsyncClient, topic: str, *bodies: Any) -> None:
    for body in bodies:
        answer = await client.post(f"/topics/{topic}", json=body)
        assert answer.status_code == 202, answer.text


def read_to_the_end(client: socket.socket) -> None:
    while client.recv(65536):
        pass


async def settled(app: App, group: str) -> None:
    """Wait until nothing of a group is in anybody's hands, or waits."""
    bus = app.bus()
    assert isinstance(bus, Inspectable)
    async with asyncio.timeout(20):
        while True:
            (info,) = await bus.groups(group)
            if not info.in_flight and not info.lag:
                return
            await asyncio.sleep(0.02)


# -- what is written


async def test_a_message_is_a_cloudevent_with_its_cursor() -> None:
    async with served() as running, running.client() as client, following(client, "orders.>") as events:
        await publish(client, "orders.placed", {"total": 3})
        (told,) = await events.take(1)
        event = json.loads(told.data)
        assert told.event == ""  # so that a browser gives it to ``onmessage``
        assert told.id == "1"
        assert event["type"] == event["tdgtopic"] == "orders.placed"
        assert event["data"] == {"total": 3}
        assert events.response.headers["cache-control"] == "no-store"


async def test_json_in_lines_is_one_event() -> None:
    async with served() as running, running.client() as client, following(client, "a") as events:
        for end in ("\n", "\r\n", "\r"):
            body = f'{{{end}"n": [1,{end}2]{end}}}'
            await client.post("/topics/a", content=body, headers={"content-type": "application/json"})
            assert await events.messages(1) == [{"n": [1, 2]}]


async def test_a_message_that_cannot_be_written_out_is_a_gap_and_costs_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        staged() as stage,
        stage.client() as client,
        following(client, "a") as one,
        following(client, "a") as other,
        following(client, "a", group="g") as member,
    ):
        await stage.gateway.bus.transport.publish([unwritable("a")])
        await publish(client, "a", 2)
        for events in (one, other):
            gap, told = await events.take(2)
            assert (gap.event, told.event, told.message) == ("gap", "", 2)
        assert await member.messages(1) == [2]
    assert len([record for record in caplog.records if "cannot be written out" in record.message]) == 1


def test_nothing_breaks_out_of_its_line() -> None:
    assert identified("a-1") == b"id: a-1\n"
    assert identified("a\ndata: forged\n\n") == identified("a\r") == identified("") == b""
    assert lines(b"a\r\nb\rc\n") == b"data: a\ndata: b\ndata: c\n"


def test_many_are_written_at_once_but_not_too_many() -> None:
    events = [b"x" * 1000] * 200
    found = list(pieces(events))
    assert b"".join(found) == b"".join(events)
    assert len(found) == 4
    assert max(map(len, found)) <= PIECE
    assert list(pieces([b"y" * (PIECE + 1), b"z"])) == [b"y" * (PIECE + 1), b"z"]


async def test_signs_of_life_come_while_nothing_else_does() -> None:
    async with staged(heartbeat=0.05) as stage, stage.client() as client, following(client, "a") as events:
        first = await events.next()
        assert first is not None
        assert first.id == "0"
        beats = [await events.next() for _ in range(3)]
        assert all(beat is not None and beat.comment for beat in beats)


async def test_what_is_said_to_one_site_is_not_said_to_another() -> None:
    """Middleware changes what is sent; nothing of it is kept for the next."""
    async with (
        served(origins=("https://a.example", "https://b.example"), anonymous=EVERYTHING) as running,
        running.client() as client,
    ):
        for origin in ("https://a.example", "https://b.example", ""):
            client.headers["origin"] = origin or running.url
            async with following(client, "a") as events:
                assert events.response.headers.get("access-control-allow-origin", "") == origin


async def test_the_head_alone_is_answered() -> None:
    async with served() as running, running.client() as client:
        answer = await client.head("/topics/a.>")
        assert (answer.status_code, answer.content) == (200, b"")


# -- resuming


@pytest.mark.parametrize("kind", KINDS)
async def test_last_event_id_resumes(kind: str, tmp_path: Path) -> None:
    async with served(app_over(kind, tmp_path)) as running, running.client() as client:
        async with following(client, "a.>") as events:
            await publish(client, "a.b", 0, 1)
            assert await events.messages(2) == [0, 1]
        await publish(client, "a.b", 2, 3)
        async with following(client, "a.>", last=events.last, after="0") as again:  # the header wins
            assert await again.messages(2) == [2, 3]
        async with following(client, "a.>", after="0") as again:
            assert await again.messages(4) == [0, 1, 2, 3]


async def test_who_has_seen_nothing_yet_resumes_too() -> None:
    async with served() as running, running.client() as client:
        await publish(client, "a", 0)
        async with following(client, "a") as events:
            told = await events.next()
            assert told is not None
        await publish(client, "a", 1)
        async with following(client, "a", last=told.id) as again:
            assert await again.messages(1) == [1]


async def test_a_cursor_of_another_bus_is_a_gap() -> None:
    async with served() as running, running.client() as client:
        await publish(client, "a", 0)
        async with following(client, "a", last="1000000") as events:
            (gap,) = await events.take(1)
            assert gap.event == "gap"
            assert gap.id is None
            await publish(client, "a", 1)
            assert await events.messages(1) == [1]


# -- groups


@pytest.mark.parametrize("kind", KINDS)
async def test_a_groups_messages_are_shared_and_settled_after_a_moment(kind: str, tmp_path: Path) -> None:
    app = app_over(kind, tmp_path)
    async with (
        served(app) as running,
        running.client() as client,
        following(client, "a", group="g") as one,
        following(client, "a", group="g", credit="5") as other,
    ):
        await one.next()
        await other.next()
        await publish(client, "a", *range(20))
        got = list[int]()

        async def read(events: Events) -> None:
            while len(got) < 20:
                got.extend(await events.messages(1))

        readers = [asyncio.create_task(read(each)) for each in (one, other)]
        await until(lambda: len(got) == 20)
        for reader in readers:
            reader.cancel()
        assert sorted(got) == list(range(20))
        await settled(app, "g")


async def test_what_was_not_settled_comes_to_the_next_member() -> None:
    async with served() as running, running.client() as client:
        async with following(client, "a", group="g", credit="1") as events:
            await events.next()
            await publish(client, "a", 0, 1, 2)
            first = await events.messages(1)
        async with following(client, "a", group="g") as again:
            rest = (await again.messages(2))[-2:]
        assert first == [0]
        assert rest in ([0, 1], [1, 2])  # the first was settled, or was not


async def test_a_new_group_begins_where_it_is_told() -> None:
    async with served() as running, running.client() as client:
        await publish(client, "a", 0, 1)
        async with following(client, "a", group="g", start="0") as events:
            assert await events.messages(2) == [0, 1]


# -- refusals


WRONG = (
    *("a?grop=g", "a?credit=0&group=g", "a?credit=many&group=g", "a?start=-1&group=g", "a?group=g&after=1"),
    *("a?after=x", "a?after=" + "9" * 30, "%23", "{device}", "_group.a", "a?group=_g", "a?group=%20"),
)


async def test_what_cannot_be_is_said() -> None:
    async with served() as running, running.client() as client:
        for asked in WRONG:
            told = problem(await client.get(f"/topics/{asked}"), 422)
            assert told.get("mend") or told.get("why"), asked
        problem(await client.get("/topics/a", headers={"last-event-id": b"\xff"}), 422)  # type: ignore[dict-item]


HEADS = ("public.a", ">", "secret", "public.a?group=mine", "_group.a")


async def test_rights_are_asked_first() -> None:
    clients = (known("reader", subscribe=("public.>",)), known("member", subscribe=("a",), group=("mine",)))
    async with served(clients=clients) as running:
        async with running.client() as nobody:
            problem(await nobody.get("/topics/public.a"), 401)
        async with running.client("wrong") as wrong:
            problem(await wrong.get("/topics/public.a"), 401)
        async with running.client("reader") as reader:
            problem(await reader.get("/topics/>"), 403)
            problem(await reader.get("/topics/public.a?group=mine"), 403)
            heads = [(await reader.head(f"/topics/{asked}")).status_code for asked in HEADS]
            assert heads == [200, 403, 403, 403, 422]
            async with following(reader, "public.*"):
                pass
        async with running.client("member") as member:
            problem(await member.get("/topics/a?group=theirs"), 403)
            async with following(member, "a", group="mine"):
                pass


async def test_a_picture_of_another_page_takes_no_messages() -> None:
    async with served() as running, running.client() as client:
        for site in ("cross-site", "same-site"):
            headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
            problem(await client.get("/topics/a?group=g", headers=headers), 403)
        for site in ("same-origin", "none"):
            async with client.stream("GET", "/topics/a?group=g", headers={"sec-fetch-site": site}) as response:
                assert response.status_code == 200


async def test_only_so_many_streams_are_open() -> None:
    async with served(limits=Limits(connections=2)) as running, running.client() as client:
        async with following(client, "a"), following(client, "b"):
            told = await client.get("/topics/c")
            problem(told, 429)
            assert int(told.headers["retry-after"]) >= 1
        async with asyncio.timeout(20):
            while True:
                async with client.stream("GET", "/topics/c") as response:
                    if response.status_code == 200:
                        break


# -- the end


async def test_streams_end_themselves_when_the_server_stops() -> None:
    async with (
        served(grace=20.0) as running,
        running.client() as client,
        following(client, "a") as one,
        following(client, "a", group="g") as other,
    ):
        await one.next()
        await other.next()
        await running.stop()
        assert await one.next() is None
        assert await other.next() is None


async def test_mounted_they_end_when_the_server_is_told_to_stop() -> None:
    async with staged() as stage, stage.client() as client, following(client, "a") as events:
        await events.next()
        stage.stopping.set()
        assert await events.next() is None
        problem(await client.get("/topics/a"), 503)


async def test_who_does_not_read_is_let_go_and_disturbs_nobody() -> None:
    async with staged(patience=1.0, window=50) as stage, stage.client() as client:
        gateway = stage.gateway
        async with following(client, "a") as events:
            with silent(stage.url, "GET /topics/a HTTP/1.1") as slow:
                slow.sendall(b"\r\n")
                await until(lambda: gateway.streams == 2)
                body = b'"' + b"x" * 100_000 + b'"'
                while gateway.streams == 2:
                    await gateway.publish(ANYONE, [Message("a", body)])
                    assert [len(text) for text in await events.messages(1)] == [100_000]
                slow.settimeout(20)
                with pytest.raises(ConnectionResetError):
                    read_to_the_end(slow)
            assert gateway.streams == 1
            await publish(client, "a", 1)
            assert await events.messages(1) == [1]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux, and root")
async def test_a_client_that_vanished_is_found_by_a_sign_of_life() -> None:
    """Its host was switched off: no FIN, no RST. What comes later is answered: nobody is there."""
    async with staged(heartbeat=0.1) as stage:
        with silent(stage.url, "GET /topics/a HTTP/1.1") as client:
            client.sendall(b"\r\n")
            await until(lambda: stage.gateway.streams == 1)
            try:
                client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closed like this it says nothing to its peer
            except PermissionError:
                pytest.skip("this container may not let a connection vanish")
        await until(lambda: stage.gateway.streams == 0)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this system")
def test_peers_that_never_answer_are_found_by_the_kernel() -> None:
    with ExitStack() as stack:
        (listener,) = listening(Settings(port=0, limits=Limits(patience=7.0)), stack)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


async def test_rights_are_those_of_the_stranger_where_nobody_says_who_it_is() -> None:
    async with served(anonymous=Rights(subscribe=("public.>",))) as running, running.client() as client:
        problem(await client.get("/topics/private"), 403)
        async with following(client, "public.>"):
            pass


async def test_without_a_log_the_last_ones_of_a_pattern_can_be_had_again() -> None:
    """There a cursor is a message's id."""
    async with staged(server("redis").url) as stage, stage.client() as client:
        topic = f"t{os.getpid()}"
        async with following(client, topic) as events, following(client, topic):
            first = await events.next()
            assert first is not None
            assert first.id is None
            await publish(client, topic, 0, 1)
            told, _ = await events.take(2)
            async with following(client, topic, last=told.id) as again:
                assert await again.messages(1) == [1]
            async with following(client, topic, last="what nobody knows") as again:
                (gap,) = await again.take(1)
                assert gap.event == "gap"
                await publish(client, topic, 2)
                assert await again.messages(1) == [2]


@pytest.mark.parametrize("kind", KINDS)
async def test_who_leaves_at_once_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    """However far the bus was with opening what it asked for."""
    async with staged(app_over(kind, tmp_path)) as stage:
        gateway = stage.gateway
        for steps in range(8):
            joining = asyncio.create_task(gateway.claim(ANYONE, "a", "g"))
            watching = asyncio.create_task(gateway.follow(ANYONE, f"a.{steps}"))
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in (joining, watching):
                if not task.cancel() and task is joining:
                    await joining.result().close()
            await asyncio.wait({joining, watching})
        bus = gateway.bus.transport
        assert isinstance(bus, Inspectable)
        joining = asyncio.create_task(gateway.claim(ANYONE, "a", "g"))
        while not await bus.groups("g"):  # noqa: ASYNC110  # how many steps that takes is the bus's business
            await asyncio.sleep(0)
        if not joining.cancel():
            await joining.result().close()
        await asyncio.wait({joining})
        assert [group.members for group in await bus.groups("g")] == [0]
        await until(lambda: len(gateway._feeds.known) == 7)  # type: ignore[union-attr]  # opened whole, to be closed whole


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_read_from_the_log_does_not_come_again(kind: str, tmp_path: Path) -> None:
    """The log may be ahead of the window: a message that was read there turns up in the window later."""
    async with staged(app_over(kind, tmp_path)) as stage:
        gateway = stage.gateway

        async def publish(number: int) -> None:
            await gateway.publish(ANYONE, [Message("a", b"%d" % number)])

        await publish(0)
        follower = await gateway.follow(ANYONE, "a", after="0")
        await publish(1)
        got = [int(item.message.body) for item in await follower.next()]
        for number in (2, 3):
            await publish(number)
        while got[-1] < 3:
            got += [int(item.message.body) for item in await follower.next()]
        assert got == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_who_falls_behind_reads_on_from_the_log_or_is_told(kind: str) -> None:
    """More is published than the system's buffers and the window hold, while nobody reads."""
    url, topic, many = (server("redis").url if kind == "redis" else "memory://"), f"b{os.getpid()}", 150
    async with staged(url, window=5) as stage, stage.client() as client, following(client, topic) as events:
        await events.next()
        for number in range(many):
            await stage.gateway.publish(ANYONE, [Message(topic, b'[%d, "%s"]' % (number, b"x" * 100_000))])
            await asyncio.sleep(0)
        gaps, got = 0, list[int]()
        while not got or got[-1] < many - 1:
            (told,) = await events.take(1)
            if told.event == "gap":
                gaps += 1
            else:
                got.append(told.message[0])
        assert got == sorted(set(got))
        assert (gaps == 0) == (len(got) == many)
        assert (gaps > 0) == (kind == "redis")
