"""The built-in page: its files, what it is told, and itself in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.transports.consuming import until

from tidings import Message
from tidings.gateway.access import Access
from tidings.gateway.page import FILES
from tidings.gateway.rights import ANYONE
from tidings.testing.faults import Proxy

from .browser import browsing
from .over_http import problem
from .serving import known
from .streaming import Stage, staged

SHAPES = [(1280, 800, "light"), (1280, 800, "dark"), (320, 640, "light"), (320, 640, "dark")]
TOPICS = "[...document.querySelectorAll('#topic-rows tr')].map((row) => row.dataset.name)"
SEEN = "[...document.querySelectorAll('#messages summary span')].map((each) => each.textContent).reverse()"


async def publish(stage: Stage, topic: str, *bodies: Any) -> None:
    await stage.gateway.publish(ANYONE, [Message(topic, json.dumps(body).encode()) for body in bodies])


async def listed(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/topics")
    assert answer.status_code == 200, answer.text
    return {topic["name"]: topic for topic in answer.json()["topics"]}


# -- its files, and what it is told


async def test_nothing_runs_that_is_not_the_pages() -> None:
    async with staged() as stage, stage.client() as client:
        for path, (name, kind) in FILES.items():
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), name
            assert "https://" not in answer.text, name


async def test_topics_are_told_with_what_is_retained_and_their_rates() -> None:
    async with staged() as stage, stage.client() as client:
        await publish(stage, "a.b", 1, 2)
        first = await listed(client)
        assert first["a.b"]["retained"] == 2
        assert first["a.b"]["last"] > 0
        assert first["a.b"]["rate"] == 0

        async def rate() -> float:
            await publish(stage, "a.b", 3)
            return float((await listed(client))["a.b"]["rate"])

        while await rate() < 0.5:
            pass
        assert list(await listed(client)) == ["a.b"]


async def test_only_topics_that_one_may_read_are_told() -> None:
    access = Access([known("reader", subscribe=("public.*",)), known("blind")], anonymous=None)
    async with staged(access=access) as stage:
        await publish(stage, "public.a", 1)
        await publish(stage, "secret.a", 1)
        async with stage.client() as nobody, stage.client("reader") as reader, stage.client("blind") as blind:
            problem(await nobody.get("/topics"), 401)
            assert list(await listed(reader)) == ["public.a"]
            assert await listed(blind) == {}


# -- in a browser


@pytest.mark.slow
async def test_one_sees_topics_publishes_and_follows() -> None:
    async with staged() as stage, browsing(stage.url) as tab:
        await publish(stage, "orders.placed", 1)
        await tab.until(f"{TOPICS}.includes('orders.placed')")
        await tab.click("#topic-rows button")
        await tab.until("document.getElementById('follow-button').textContent === 'Stop'")
        await until(lambda: stage.gateway.streams == 1)
        await tab.until("document.getElementById('count').textContent.startsWith('0 so far')")
        await tab.type("body", '{"text": "<img src=x onerror=alert(1)>"}')
        await tab.type("key", "k1")
        await tab.click("#publish-form button")
        await tab.until("document.getElementById('published').textContent.startsWith('Accepted: ')")
        await tab.until(f"{SEEN}.length === 1")
        assert await tab.run(SEEN) == ['[k1] {"text":"<img src=x onerror=alert(1)>"}']
        assert await tab.run("document.querySelectorAll('#messages img').length") == 0
        await tab.click("#messages summary")
        assert '"partitionkey": "k1"' in await tab.until("document.querySelector('#messages pre')?.textContent")
        await publish(stage, "orders.placed", 2)  # waits until that one is closed
        await tab.until("document.getElementById('count').textContent.startsWith('2 so far; ')")
        assert len(await tab.run(SEEN)) == 1
        await tab.click("#messages summary")
        await tab.until(f"{SEEN}.length === 2")
        await tab.type("topic", "orders.*")
        await tab.click("#publish-form button")
        await tab.until("document.getElementById('published').className === 'error'")
        assert "it cannot be published to" in await tab.run("document.getElementById('published').textContent")
        await tab.click("#follow-button")
        await until(lambda: not stage.gateway._feeds.known["orders.placed"].followers)  # type: ignore[union-attr]
        assert [text for text in tab.complaints if "422" not in text] == []
        assert {httpx.URL(url).netloc for url in tab.requested} == {httpx.URL(stage.url).netloc}


@pytest.mark.slow
async def test_it_asks_for_a_token_where_one_is_wanted() -> None:
    access = Access([known("reader", subscribe=("public.>",))], anonymous=None)
    async with staged(access=access) as stage, browsing(stage.url) as tab:
        await publish(stage, "public.a", 1)
        await publish(stage, "secret.a", 1)
        for given, expected in (("", "wants to know"), ("wrong", "not known here")):
            await tab.until("document.getElementById('token-dialog').open")
            if given:
                await tab.type("token", given)
                await tab.click("#token-form button[type=submit]")
            await tab.until(f"document.getElementById('token-why').textContent.includes('{expected}')")
        await tab.until("document.getElementById('token-dialog').open")
        await tab.type("token", "reader")
        await tab.click("#token-form button[type=submit]")
        await tab.until(f"{TOPICS}.length === 1")
        assert await tab.run(TOPICS) == ["public.a"]
        await tab.click("#follow-button")  # of ">"
        await tab.until("document.getElementById('follow-error').textContent.includes('may not subscribe')")
        await tab.click("#topic-rows button")
        await tab.until("document.getElementById('count').textContent.startsWith('0 so far')")
        await publish(stage, "public.a", "seen")
        await tab.until(f"{SEEN}.length === 1")
        assert await tab.run("[localStorage.length, document.cookie]") == [0, ""]
        await tab.call("Page.reload")
        await tab.until(f"{TOPICS}.length === 1")  # kept in this tab
        await tab.click("#token-open")
        await tab.click("#token-forget")
        await tab.until("document.getElementById('token-dialog').open")


@pytest.mark.slow
async def test_a_lost_connection_is_taken_up_where_it_was() -> None:
    async with (
        staged() as stage,
        Proxy("127.0.0.1", int(stage.url.rpartition(":")[2])) as proxy,
        browsing(f"http://{proxy.address}") as tab,
    ):
        await tab.click("#follow-button")
        await tab.until("document.getElementById('count').textContent.startsWith('0 so far')")
        await publish(stage, "a", 0)
        await tab.until(f"{SEEN}.length === 1")
        proxy.reset()
        await until(lambda: stage.gateway.streams == 0)
        await publish(stage, "a", 1, 2)
        await tab.until(f"{SEEN}.length === 3")
        await publish(stage, "a", 3)
        await tab.until(f"{SEEN}.length === 4")
        assert await tab.run(SEEN) == ["0", "1", "2", "3"]


@pytest.mark.slow
async def test_a_browsers_own_events_resume() -> None:
    """``EventSource`` knows nothing of Tidings: it sends the last id that it was told, here of no message yet."""
    async with (
        staged() as stage,
        Proxy("127.0.0.1", int(stage.url.rpartition(":")[2])) as proxy,
        browsing(f"http://{proxy.address}") as tab,
    ):
        await tab.run(
            "(window.got = [], window.events = new EventSource('topics/a'),"
            " window.events.onmessage = ({ data }) => window.got.push(JSON.parse(data).data), 0)"
        )
        await tab.until("window.events.readyState === 1")
        await until(lambda: stage.gateway.streams == 1)
        proxy.reset()
        await until(lambda: stage.gateway.streams == 0)
        await publish(stage, "a", "while it was away")
        await tab.until("window.got.length === 1")
        assert await tab.run("window.got") == ["while it was away"]


@pytest.mark.slow
async def test_it_fits_and_has_names_for_all_that_can_be_used(tmp_path: Path) -> None:
    async with staged() as stage, browsing(stage.url) as tab:
        await publish(stage, "a.name.that.is.longer.than.a.phone.is.wide.by.quite.a.few.characters", {"x": "y" * 500})
        await tab.until(f"{TOPICS}.length === 1")
        await tab.click("#topic-rows button")
        await tab.until("document.getElementById('count').textContent.startsWith('0 so far')")
        await publish(stage, "a.name.that.is.longer.than.a.phone.is.wide.by.quite.a.few.characters", {"x": "y" * 500})
        await tab.until(f"{SEEN}.length === 1")
        grounds = set[str]()
        for number, (width, height, scheme) in enumerate(SHAPES):
            await tab.shape(width, height, scheme)
            assert await tab.run("document.documentElement.scrollWidth") <= width
            grounds.add(await tab.run("getComputedStyle(document.body).backgroundColor"))
            await tab.picture(tmp_path / f"{number}.png")
            assert (tmp_path / f"{number}.png").stat().st_size > 5_000
        assert len(grounds) == 2
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        used = [
            node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox", "searchbox", "region")
        ]
        assert len(used) >= 10
        assert [node for node in used if not node.get("name", {}).get("value")] == []
        assert tab.complaints == []
