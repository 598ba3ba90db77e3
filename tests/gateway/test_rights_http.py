"""Each right, denied and given, over HTTP. Who has one has no other."""

from __future__ import annotations

from typing import Any

import httpx

from tidings import App

from .serving import known, served

RIGHTS: dict[str, dict[str, Any]] = {
    "publish": {"publish": ("orders.>",)},
    "subscribe": {"subscribe": ("orders.>",)},
    "group": {"subscribe": ("orders.>",), "group": ("billing",)},
    "request": {"request": ("prices.*",)},
    "admin": {"admin": True},
    "member": {"member": True},
    "nothing": {},
}
CLIENTS = tuple(known(name, **rights) for name, rights in RIGHTS.items())


async def publish(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/topics/orders.placed", json=1)


async def subscribe(client: httpx.AsyncClient) -> httpx.Response:
    async with client.stream("GET", "/topics/orders.*") as stream:
        if stream.status_code != 200:
            await stream.aread()
        return stream


async def group(client: httpx.AsyncClient) -> httpx.Response:
    async with client.stream("GET", "/topics/orders.*?group=billing") as stream:
        if stream.status_code != 200:
            await stream.aread()
        return stream


async def request(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/requests/prices.quote", json="tea")


async def admin(client: httpx.AsyncClient) -> httpx.Response:
    return await client.get("/metrics")


ACTIONS = {
    publish: {"publish"},
    subscribe: {"subscribe", "group"},
    group: {"group"},
    request: {"request"},
    admin: {"admin"},
}
BEYOND = ("orders", "payments.made", "_dead.x", "_group.billing", "_request.prices.quote")


def shop() -> App:
    app = App("shop", "memory://")

    @app.answer("prices.quote")
    async def quote(name: str) -> float:
        return 1.5

    return app


async def test_each_right_is_for_what_it_says_and_for_nothing_else() -> None:
    async with served(shop(), clients=CLIENTS) as running:
        for action, allowed in ACTIONS.items():
            for name in RIGHTS:
                async with running.client(name) as client:
                    answer = await action(client)
                    expected = answer.status_code < 300 if name in allowed else answer.status_code == 403
                    assert expected, (action.__name__, name, answer)
                    if name not in allowed:
                        assert answer.headers["content-type"] == "application/problem+json"
                        assert answer.json()["mend"]


async def test_who_is_not_known_does_nothing() -> None:
    async with served(shop(), clients=CLIENTS) as running:
        for action in ACTIONS:
            for token in ("", "unknown"):
                async with running.client(token) as client:
                    answer = await action(client)
                    assert answer.status_code == 401, (action.__name__, token)
                    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_topics_and_patterns_beyond_a_pattern() -> None:
    async with served(shop(), clients=CLIENTS) as running:
        async with running.client("publish") as client:
            for topic in (*BEYOND, "orders.*", "orders.>"):
                assert (await client.post(f"/topics/{topic}", json=1)).status_code in (403, 422), topic
        async with running.client("subscribe") as client:
            for pattern in (*BEYOND, ">", "*", "*.placed", "_>", "payments.*", "_dead.>"):
                async with client.stream("GET", f"/topics/{pattern}") as stream:
                    assert stream.status_code in (403, 422), pattern


async def test_a_group_of_others_cannot_be_taken() -> None:
    async with served(shop(), clients=CLIENTS) as running, running.client("group") as client:
        for name in ("shop.bill", "billing.more", "_group.billing"):
            async with client.stream("GET", f"/topics/orders.*?group={name}") as stream:
                assert stream.status_code in (403, 422), name


async def test_a_scheme_that_is_no_bearer() -> None:
    async with served(shop(), clients=CLIENTS) as running, running.client() as client:
        answer = await client.post("/topics/orders.placed", json=1, auth=("publish", "publish"))
        assert answer.status_code == 401
