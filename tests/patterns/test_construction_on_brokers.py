"""What these patterns say in headers, and bind bodies to, is the same after a real broker, also after a retry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from tests.servers import server
from tests.transports.consuming import until

from tidings import App, Backoff, Message, Topic
from tidings.kernel.message import new_id
from tidings.middleware import instrument
from tidings.patterns import (
    ClaimCheck,
    FolderBlobs,
    MessageHistory,
    Position,
    Schema,
    compressed,
    encrypted,
    history,
    position,
    splitter,
)


class Film(Struct):
    title: str
    reels: list[str]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["postgres", "nats", "rabbitmq", "redis", "kafka"])
async def test_all_at_once(name: str, tmp_path: Path) -> None:
    place = f"t{new_id().partition('-')[0]}"
    films, reels = Topic(f"{place}.films.made", Film), Topic(f"{place}.films.reels", str)
    app = App(place, server(name).url, backoff=Backoff(attempts=3, first="2s", limit="2s"))
    claims, schema = ClaimCheck(FolderBlobs(tmp_path), above=1000), Schema("film", 2, topics=films.name)
    came: list[Message[str]] = []
    failing = iter((True, True))

    @schema.upcast(1, 2)
    def with_reels(old: dict[str, Any]) -> Film:
        return Film(old["title"], [old["frames"]] * 3)

    @splitter(app, films, to=reels, key=lambda reel: reel[0])
    def reels_of(film: Film) -> list[str]:
        if next(failing, False):  # two waits longer than what is waited for in place: it goes back to the broker
            raise ConnectionError
        return film.reels

    @app.on(reels)
    async def show(message: Message[str]) -> None:
        came.append(message)

    vault = encrypted({"2026-11": bytes(32)}, topics=f"{place}.films.>")
    squeeze = compressed(topics=f"{place}.films.>", required=True)
    instrument(app, MessageHistory(), claims, vault, squeeze, schema)
    old: Topic[Any] = Topic(films.name)
    async with app:
        frames = "".join(str(hash(str(number))) for number in range(500))
        body, headers = (
            {"title": "Metropolis", "frames": f"a{frames}"},
            {"schema-version": "film/1", "tenant": "ü, a/b"},
        )
        await app.publish(old, body, id=f"{place}-1", key="k", headers=headers)
        await until(lambda: len(came) == 3, within=60)
        assert app.stats()[f"{place}.reels_of"].failed == 2
    assert [message.data for message in came] == [f"a{frames}"] * 3
    assert sorted(map(position, came), key=str) == [Position(f"{place}-1", number, 3) for number in range(3)]
    assert {(message.key, message.content_type) for message in came} == {("a", "text/plain")}
    assert all(history(message) == [f"{place}.reels_of"] for message in came)
    assert claims.blobs.days()
