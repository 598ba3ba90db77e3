"""``tidings.v1`` over WebSocket: following, publishing, groups, requests; whatever else a client may send."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.servers import server
from tests.state.stores import url_of
from tests.transports.consuming import until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tidings import App, Backoff, Message, Service
from tidings.gateway.access import Access
from tidings.gateway.asgi import asgi
from tidings.gateway.frames import Ack, Credit, Fail, Publish, Request, Subscribe, Unsubscribe, read
from tidings.gateway.limits import Limits
from tidings.gateway.refusals import Malformed
from tidings.gateway.rights import ANYONE, EVERYTHING, Rights

from .over_http import listening
from .serving import DEADLINE, known, served
from .streaming import Stage, Talk, frame, silent, staged, talking, unwritable, upgrade

KINDS = ["memory", "sqlite"]
SAID = (Subscribe, Unsubscribe, Ack, Fail, Credit, Publish, Request)


def app_over(kind: str, folder: Path) -> App:
    return App("gateway", url_of(kind, folder), backoff=Backoff(attempts=3, first=0.01))


@asynccontextmanager
async def spoken(app: App | str = "memory://", **limits: Any) -> AsyncIterator[tuple[Stage, Talk]]:
    async with staged(app, **limits) as stage, talking(stage.url) as talk:
        yield stage, talk


async def publish(stage: Stage, topic: str, *bodies: Any) -> None:
    await stage.gateway.publish(ANYONE, [Message(topic, json.dumps(body).encode()) for body in bodies])


async def join(talk: Talk, **more: Any) -> None:
    await talk.say(subscribe={"id": "g", "pattern": "a", "group": "g", **more})
    await talk.hear("subscribed")


async def closed(talk: Talk) -> int:
    """The code that the connection is closed with, whatever comes before."""
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                await talk.connection.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd is not None else 1006


async def accepted(client: socket.socket) -> bool:
    """Whether the answer to a handshake is yes."""
    client.setblocking(False)
    head = b""
    async with asyncio.timeout(DEADLINE):
        while not head.endswith(b"\r\n\r\n"):
            head += await asyncio.get_running_loop().sock_recv(client, 1)
    return head.startswith(b"HTTP/1.1 101 ")


# -- following and publishing


@pytest.mark.parametrize("kind", KINDS)
async def test_following_resumes_at_a_cursor(kind: str, tmp_path: Path) -> None:
    async with spoken(app_over(kind, tmp_path)) as (stage, talk):
        await talk.say(subscribe={"id": "all", "pattern": "a.>"})
        assert (await talk.hear("subscribed"))["id"] == "all"
        await publish(stage, "a.b", 0, 1)
        first, _ = await talk.messages(2)
        assert first["id"] == "all"
        assert first["event"]["tdgtopic"] == "a.b"
        assert first["event"]["data"] == 0
        async with talking(stage.url) as again:
            await again.say(subscribe={"id": "rest", "pattern": "a.*", "after": first["cursor"]})
            await again.hear("subscribed")
            assert [(await again.hear("message"))["event"]["data"]] == [1]
            await again.say(subscribe={"id": "lost", "pattern": "a.*", "after": "1000000"})
            assert [said["id"] for said in await again.hear("subscribed", "gap")] == ["lost", "lost"]
        await talk.say(unsubscribe={"id": "all"})
        assert await talk.hear("ended") == {"id": "all"}
        assert stage.gateway.streams == 1


async def test_what_is_published_arrives_as_it_was() -> None:
    async with spoken() as (stage, talk):
        follower = await stage.gateway.follow(ANYONE, ">")
        frames: list[dict[str, Any]] = [
            {"data": {"n": 1}, "key": "k", "priority": 3, "type": "T", "headers": {"h": "v"}, "message_id": "mine"},
            {"data": "Grüezi", "content_type": "text/plain"},
            {"data_base64": "AP8="},
            {"data": "text in JSON"},
            {},
        ]
        for number, fields in enumerate(frames):
            await talk.say(publish={"id": str(number), "topic": "a", **fields})
        told = await talk.hear(*["published"] * len(frames))
        assert [each["id"] for each in told] == ["0", "1", "2", "3", "4"]
        assert told[0]["message_id"] == "mine"
        items = list[Any]()
        while len(items) < len(frames):
            items += await follower.next()
        found = [item.message for item in items]
        assert [message.body for message in found] == [
            b'{"n": 1}',
            "Grüezi".encode(),
            b"\x00\xff",
            b'"text in JSON"',
            b"",
        ]
        assert [message.content_type for message in found[:4]] == [
            "application/json",
            "text/plain",
            "application/octet-stream",
            "application/json",
        ]
        assert (found[0].key, found[0].priority, found[0].type, found[0].headers) == ("k", 3, "T", (("h", "v"),))
        assert [message.id for message in found] == [each["message_id"] for each in told]


async def test_who_falls_behind_where_there_is_no_log_is_told() -> None:
    topic, many = f"w{os.getpid()}", 150
    async with spoken(server("redis").url, window=5) as (stage, talk):
        await talk.say(subscribe={"id": "s", "pattern": topic})
        await talk.hear("subscribed")
        for number in range(many):
            await publish(stage, topic, [number, "x" * 100_000])
        got, gaps = list[int](), 0
        while not got or got[-1] < many - 1:
            kind, said = await talk.next()
            assert said["id"] == "s"
            if kind == "gap":
                gaps += 1
            else:
                got.append(said["event"]["data"][0])
        assert got == sorted(set(got))
        assert len(got) < many
        assert gaps


# -- groups


@pytest.mark.parametrize("kind", KINDS)
async def test_a_groups_messages_stay_until_they_are_acknowledged(kind: str, tmp_path: Path) -> None:
    """Whoever goes, in whatever way, leaves what it did not acknowledge to the others."""
    async with staged(app_over(kind, tmp_path)) as stage:
        async with talking(stage.url) as first:
            await join(first)
            await publish(stage, "a", 0, 1, 2)
            got = await first.messages(3)
            assert [(each["number"], each["attempt"], each["event"]["data"]) for each in got] == [
                (1, 1, 0),
                (2, 1, 1),
                (3, 1, 2),
            ]
            await first.say(ack={"id": "g", "numbers": [1, 2]})
            await first.say(publish={"id": "p", "topic": "b"})  # answered when the acknowledgements were heard
            await first.hear("published")
            first.connection.transport.abort()
        async with talking(stage.url) as second:
            await join(second)
            (rest,) = await second.messages(1)
            assert (rest["event"]["data"], rest["attempt"]) == (2, 1)
            await second.say(unsubscribe={"id": "g"})
            await second.hear("ended")
            await join(second)
            (rest,) = await second.messages(1)
            assert rest["event"]["data"] == 2


async def test_credit_is_how_many_may_be_unacknowledged() -> None:
    async with spoken() as (stage, talk):
        await join(talk, credit=0)
        await publish(stage, "a", *range(5))
        await talk.say(credit={"id": "g", "credit": 2})
        got = await talk.messages(2)
        assert [each["event"]["data"] for each in got] == [0, 1]
        await talk.say(publish={"id": "p", "topic": "b"})
        await talk.hear("published")  # and no third message before
        await talk.say(ack={"id": "g", "numbers": [got[0]["number"]]})
        assert [each["event"]["data"] for each in await talk.messages(1)] == [2]


async def test_a_message_that_cannot_be_written_out_costs_no_other() -> None:
    async with spoken() as (stage, talk):
        await talk.say(subscribe={"id": "copies", "pattern": "a"})
        await talk.hear("subscribed")
        await join(talk)
        await stage.gateway.bus.transport.publish([unwritable("a")])
        await publish(stage, "a", 2)
        heard = [await talk.next() for _ in range(3)]
        assert sorted((kind, said["id"]) for kind, said in heard) == [
            ("gap", "copies"), ("message", "copies"), ("message", "g")
        ]  # fmt: skip
        assert [said["event"]["data"] for kind, said in heard if kind == "message"] == [2, 2]


async def test_a_failed_message_comes_again_or_is_a_dead_letter() -> None:
    app = App("gateway", "memory://", backoff=Backoff(attempts=2, first=0.01))
    async with spoken(app) as (stage, talk):
        dead = await stage.gateway.follow(ANYONE.__class__("op", Rights(subscribe=("_dead.g",))), "_dead.g")
        await join(talk)
        await publish(stage, "a", "again")
        (first,) = await talk.messages(1)
        await talk.say(fail={"id": "g", "number": first["number"], "retry": 0.01, "error": "not yet"})
        (second,) = await talk.messages(1)
        assert (second["event"]["data"], second["attempt"]) == ("again", 2)
        await talk.say(fail={"id": "g", "number": second["number"], "error": "no disk"})
        (letter,) = await dead.next()
        assert letter.message.header("tdgdetail") == "no disk"
        assert letter.message.header("tdgfailures") == "2"
        await publish(stage, "a", "never")
        (third,) = await talk.messages(1)
        await talk.say(fail={"id": "g", "number": third["number"], "reject": True, "error": "nonsense"})
        (letter,) = await dead.next()
        assert letter.message.body == b'"never"'
        assert "nonsense" in letter.message.header("tdgdetail")


async def test_a_message_that_is_kept_too_long_is_no_longer_in_hand() -> None:
    async with spoken() as (stage, talk):
        await join(talk, acknowledge=0.05)
        await publish(stage, "a", 0)
        (first,) = await talk.messages(1)
        (second,) = await talk.messages(1)
        assert (first["attempt"], second["attempt"]) == (1, 2)
        await talk.say(ack={"id": "g", "numbers": [first["number"]]})
        error = await talk.hear("error")
        assert error["id"] == "g"
        assert "not in your hands: 1" in error["what"]


# -- requests


async def test_services_are_asked() -> None:
    answerer = App("prices", "memory://prices")
    quote, count = Service("quote", str, dict[str, int]), Service("count", int, int)

    @answerer.answer(quote)
    async def quoted(name: str) -> dict[str, int]:
        if not name:
            raise ValueError("quote what?")
        return {name: len(name)}

    @answerer.answer(count)
    async def counted(upto: int) -> AsyncIterator[int]:
        for n in range(upto):
            yield n

    async with answerer, spoken(answerer) as (_, talk):
        await talk.say(request={"id": "1", "service": "quote", "data": "chair"})
        reply, ended = await talk.hear("reply", "ended")
        assert reply == {"id": "1", "content_type": "application/json", "data": {"chair": 5}}
        assert ended == {"id": "1"}
        await talk.say(request={"id": "2", "service": "count", "data": 3})
        assert [each.get("data") for each in await talk.hear("reply", "reply", "reply", "ended")] == [0, 1, 2, None]
        for id, service, data, code in (("3", "quote", "", "TDG-E043"), ("4", "nobody", 1, "TDG-E041")):
            await talk.say(request={"id": id, "service": service, "data": data})
            error, _ = await talk.hear("error", "ended")
            assert (error["id"], error["code"]) == (id, code)


# -- what means nothing


MEANINGLESS = [
    ("[]", "Expected `object`"),
    ("1", "Expected `object`"),
    ("{}", "says one thing, this one 0"),
    ('{"subscribe": {"id": "a", "pattern": "a"}, "ack": {"id": "a", "numbers": []}}', "one thing, this one 2"),
    ('{"subscribes": {"id": "x"}}', "unknown field `subscribes`"),
    ('{"subscribe": {"id": "x"}}', "missing required field `pattern`"),
    ('{"subscribe": {"id": "", "pattern": "a"}}', "length >= 1"),
    ('{"subscribe": {"id": "x", "pattern": "a..b"}}', "no valid pattern"),
    ('{"subscribe": {"id": "x", "pattern": "#"}}', "no valid pattern"),
    ('{"subscribe": {"id": "x", "pattern": "_group.a"}}', "reserved"),
    ('{"subscribe": {"id": "x", "pattern": "a", "after": "b"}}', "no cursor"),
    ('{"subscribe": {"id": "x", "pattern": "a", "group": "g", "after": "1"}}', "knows itself"),
    ('{"subscribe": {"id": "x", "pattern": "a", "group": "g", "credit": -1}}', "`int` >= 0"),
    ('{"unsubscribe": {"id": "x"}}', "nothing is subscribed to"),
    ('{"ack": {"id": "x", "numbers": [1]}}', "no group is subscribed to"),
    ('{"fail": {"id": "x", "number": 1}}', "no group is subscribed to"),
    ('{"credit": {"id": "x", "credit": 1}}', "no group is subscribed to"),
    ('{"publish": {"id": "x", "topic": "a.*"}}', "is a pattern"),
    ('{"publish": {"id": "x", "topic": "_dead.a"}}', "reserved"),
    ('{"publish": {"id": "x", "topic": "a", "data": 1, "data_base64": "AA=="}}', "both data and data_base64"),
    ('{"publish": {"id": "x", "topic": "a", "data_base64": "%"}}', "base64"),
    ('{"publish": {"id": "x", "topic": "a", "data": 1, "content_type": "text/plain"}}', "no string"),
    ('{"publish": {"id": "x", "topic": "a", "priority": 10}}', "`int` <= 9"),
    ('{"publish": {"id": "x", "topic": "a", "headers": {"tdgx": "1"}}}', "tdg"),
]


async def test_a_frame_that_means_nothing_is_answered() -> None:
    async with spoken() as (_, talk):
        for text, expected in MEANINGLESS:
            await talk.connection.send(text)
            error = await talk.hear("error")
            assert expected in error["what"] + error.get("why", ""), text
            assert error["code"].startswith("TDG-E")
            assert error.get("id") == ("x" if '"x"' in text else "a" if '"a", "pattern"' in text else None), text


async def test_what_is_no_frame_closes_the_connection() -> None:
    async with staged(body=1000) as stage:
        for sent, code in (
            ("no JSON", 1007),
            ('{"publish": {"id": "x", "topic": "a", "data": ' + "[" * 60_000, 1007),
            (b"bytes", 1003),
            ('"' + "x" * 100_000 + '"', 1009),
        ):
            async with talking(stage.url) as talk:
                await talk.connection.send(sent)
                assert await closed(talk) == code
        await until(lambda: stage.gateway.streams == 0)


async def test_a_frame_may_be_too_large_for_us_where_it_is_not_for_the_server() -> None:
    async with listening(asgi("memory://", limits=Limits(body=1000))) as url, talking(url) as talk:
        await talk.connection.send('"' + "x" * 100_000 + '"')
        assert await closed(talk) == 1009


async def test_a_body_that_is_too_large_is_answered() -> None:
    async with spoken(body=1000) as (_, talk):
        await talk.say(publish={"id": "p", "topic": "a", "data": "x" * 1000})
        assert (await talk.hear("error"))["code"] == "TDG-E009"


async def test_only_so_many_subscriptions_and_each_name_once() -> None:
    async with spoken(subscriptions=2) as (_, talk):
        await talk.say(subscribe={"id": "1", "pattern": "a"})
        await talk.hear("subscribed")
        await talk.say(subscribe={"id": "1", "pattern": "b"})
        assert "in use" in (await talk.hear("error"))["what"]
        await talk.say(subscribe={"id": "2", "pattern": "a", "group": "g"})
        await talk.hear("subscribed")
        for frame in ({"subscribe": {"id": "3", "pattern": "a"}}, {"request": {"id": "3", "service": "a"}}):
            await talk.say(**frame)
            assert (await talk.hear("error"))["code"] == "TDG-E063"
        await talk.say(unsubscribe={"id": "1"})
        await talk.hear("ended")
        await talk.say(subscribe={"id": "3", "pattern": "a"})
        await talk.hear("subscribed")


def test_a_name_that_is_too_long_is_none() -> None:
    with pytest.raises(Malformed, match="length <= 200"):
        read(json.dumps({"unsubscribe": {"id": "x" * 201}}))


FIELDS = sorted({field for kind in SAID for field in kind.__struct_fields__})
VALUES: Sequence[Any] = (
    *("s", "g", "a", "a.>", "*", "1", "_x", "", "AA==", "text/plain", "é", "x" * 300),
    *(0, 1, -1, 2**70, 0.5, 1e300, True, None, [1, 2], {"h": "v"}, [], {}),
)
USUAL = {"pattern": "a", "topic": "a", "service": "a", "numbers": [1, 2], "number": 1, "credit": 10}


def frames(seed: int, count: int) -> Iterator[str]:
    """Frames that are nearly right, quite wrong, or none."""
    random = Random(seed)
    for _ in range(count):
        kind = random.choice(SAID)
        known = kind.__struct_fields__
        said: Any = {"id": random.choice("sga1"), **{name: USUAL[name] for name in known if name in USUAL}}
        names = random.choices(known, k=random.randint(0, 3)) + random.choices(FIELDS, k=random.randint(0, 1))
        said |= {name: random.choice(VALUES) for name in names}
        shape = random.random()
        if shape < 0.1:
            said = random.choice(VALUES)
        frame: Any = {kind.__name__.lower() if shape < 0.9 else random.choice(FIELDS): said}
        yield json.dumps(frame if shape < 0.97 else random.choice((said, [frame], frame | {"ack": said})))


async def test_thousands_of_frames_that_nobody_meant(caplog: pytest.LogCaptureFixture) -> None:
    """Each is answered or means something; no connection is lost, nothing is logged, nothing is left behind."""
    async with spoken(subscriptions=20) as (stage, talk):
        heard = Counter[str]()

        async def listen() -> None:
            while True:
                kind, said = await talk.next()
                heard[kind] += 1
                if said.get("id") == "the last":
                    return

        listening = asyncio.create_task(listen())
        for text in frames(7, 10_000):
            await talk.connection.send(text)
        await talk.say(publish={"id": "the last", "topic": "a"})
        await listening
        assert heard["error"] > 5000
        assert min(heard[kind] for kind in ("subscribed", "published", "message", "ended")) > 5
        assert stage.gateway.streams == 1
    assert stage.gateway.streams == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_any_text_is_read_or_refused() -> None:
    random, meant = Random(11), list(frames(12, 1000))
    for text in meant:
        at = random.randrange(len(text) + 1)
        broken = text[:at] + random.choice(('"', "{", "]", "\\", "\0", "\udcff", "9" * 400, "")) + text[at + 1 :]
        with suppress(Malformed):
            read(broken)


# -- who may come


async def test_a_token_may_be_a_subprotocol() -> None:
    clients = (known("tdg_reader-1", subscribe=("public.>",)),)
    async with served(clients=clients) as running:
        for protocols, status in ((["tidings.v1"], 401), (["tidings.v1", "bearer.wrong"], 401)):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(running.url.replace("http", "ws") + "/ws", subprotocols=protocols, proxy=None):  # type: ignore[arg-type]
                    pass
            assert refused.value.response.status_code == status
            assert b"wrong" not in refused.value.response.body
        async with talking(running.url, token="tdg_reader-1") as talk:
            for frame in (
                {"subscribe": {"id": "x", "pattern": ">"}},
                {"subscribe": {"id": "x", "pattern": "public.a", "group": "g"}},
                {"publish": {"id": "x", "topic": "public.a"}},
            ):
                await talk.say(**frame)
                assert (await talk.hear("error"))["code"] == "TDG-E062"
            await talk.say(request={"id": "x", "service": "public.a"})
            assert (await talk.hear("error", "ended"))[0]["code"] == "TDG-E062"
            await talk.say(subscribe={"id": "x", "pattern": "public.>"})
            await talk.hear("subscribed")


async def test_a_page_of_another_site_may_not_come() -> None:
    """Wherever the app is served, by ``tidings serve`` or mounted."""
    async with served(origins=("https://friend.example",), anonymous=EVERYTHING) as running, staged() as stage:
        for url in (running.url, stage.url):
            with pytest.raises(InvalidStatus) as refused:
                async with talking(url, origin="https://elsewhere.example"):
                    pass
            assert refused.value.response.status_code == 403
            async with talking(url, origin=url):
                pass
        async with talking(running.url, origin="https://friend.example"):
            pass


async def test_only_so_many_connections_are_open() -> None:
    async with staged(connections=1) as stage, talking(stage.url):
        with pytest.raises(InvalidStatus) as refused:
            async with talking(stage.url):
                pass
        assert refused.value.response.status_code == 429
        assert "retry-after" in refused.value.response.headers


async def test_what_offers_no_subprotocol_may_speak_too() -> None:
    async with staged() as stage, connect(stage.url.replace("http", "ws") + "/ws", proxy=None) as connection:
        assert connection.subprotocol is None
        await connection.send('{"publish": {"id": "1", "topic": "a"}}')
        assert "published" in json.loads(await connection.recv())


# -- the end


async def test_when_the_server_stops_it_says_so() -> None:
    async with staged() as stage, talking(stage.url) as talk:
        await join(talk)
        stage.stopping.set()
        assert await closed(talk) == 1012


@pytest.mark.parametrize("says", [{"publish": {"id": "1", "topic": "a"}}, {"request": {"id": "1", "service": "a"}}])
async def test_what_fails_here_is_not_the_clients_fault(says: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """It is not told that it is known no longer, which would make it forget its token; the log has why, once."""
    async with spoken() as (stage, talk):
        del stage.gateway.pace
        await talk.say(**says)
        assert await closed(talk) == 1011
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info


async def test_who_does_not_read_is_told_when_it_does() -> None:
    """Nobody else waits for it; what it was sent before still comes, and then why no more does."""
    async with staged(patience=1.0, window=20) as stage, talking(stage.url) as good:
        await good.say(subscribe={"id": "s", "pattern": "a"})
        await good.hear("subscribed")
        with silent(stage.url, "GET /ws HTTP/1.1") as slow:
            slow.sendall(upgrade().encode())
            assert await accepted(slow)
            slow.sendall(frame('{"subscribe": {"id": "s", "pattern": "a"}}'))
            await until(lambda: stage.gateway.streams == 2)
            while stage.gateway.streams == 2:
                await publish(stage, "a", "x" * 100_000)
                await good.hear("message")
            end = b""
            async with asyncio.timeout(DEADLINE):
                while part := await asyncio.get_running_loop().sock_recv(slow, 1 << 20):
                    end = (end + part)[-200:]
            assert end.endswith(b"\x88\x0a\x03\xf5too slow")  # RFC 6455, section 5.5.1: 1013
        await publish(stage, "a", "on")
        assert (await good.hear("message"))["event"]["data"] == "on"


async def test_who_answers_no_ping_has_gone() -> None:
    async with staged(heartbeat=0.1, patience=0.3) as stage:
        with silent(stage.url, "GET /ws HTTP/1.1") as dead:
            dead.sendall(upgrade().encode())
            await until(lambda: stage.gateway.streams == 1)
            await until(lambda: stage.gateway.streams == 0)


async def test_access_without_a_stranger() -> None:
    async with staged(access=Access(anonymous=None)) as stage:
        with pytest.raises(InvalidStatus):
            async with talking(stage.url):
                pass
