"""URLs and options: read whole, and refused with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.servers import fresh, server
from tests.transports.consuming import take
from tests.transports.redis.helpers import bus, group, message, raw

from tidings.kernel.errors import BusUnavailable, InvalidOption, InvalidURL
from tidings.transports.redis import Redis, size


def test_a_url_says_all() -> None:
    url = "rediss://shop:p%40ss@a:1,b/3?namespace=x&lease=5s&topics=7&streams=orders.placed=orders,a.b=c&retain=1d"
    options = Redis.from_url(url)
    where = options.location()
    assert (where.hosts, where.user, where.password) == ((("a", 1), ("b", 6379)), "shop", "p@ss")
    assert (options.db, options.tls, options.namespace, options.lease, options.topics) == (3, True, "x", "5s", 7)
    assert options.own_keys() == {"orders.placed": "orders", "a.b": "c"}
    assert "p@ss" not in options.shown
    assert "p%40ss" not in options.shown


def test_sentinel_and_cluster() -> None:
    options = Redis.from_url("redis+sentinel://s1,s2:5000/mymaster/2")
    assert (options.location().hosts, options.primary, options.db) == ((("s1", 26379), ("s2", 5000)), "mymaster", 2)
    assert Redis.from_url("redis+cluster://n1,n2").location().hosts == (("n1", 6379), ("n2", 6379))
    assert not Redis.from_url("valkey://h").tls
    assert Redis.from_url("valkeys://h").tls


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "is no Redis URL"),
        ("redis://host:port", "is no host and port"),
        ("redis://host/shop", "is no database"),
        ("redis+cluster://host/1", "leave the path out"),
        ("redis+sentinel://host", "does not say which primary"),
        ("redis://host?leese=1s", "did you mean 'lease'?"),
        ("redis://host?lease=0s", "lease cannot be 0"),
        ("redis://host?max_size=big", "max_size cannot be 'big'"),
        ("redis://host?namespace={a}", "namespace cannot be"),
        ("redis://host?streams=orders", "streams cannot be"),
        ("redis://host?topics=0", "topics is at least 1"),
    ],
)
def test_what_is_refused(url: str, says: str) -> None:
    with pytest.raises((InvalidURL, InvalidOption)) as refused:
        Redis.from_url(url)
    assert says in str(refused.value)


def test_sizes() -> None:
    assert [size(text) for text in ("7", "2KiB", "64MiB", "1GiB")] == [7, 2048, 64 << 20, 1 << 30]


async def test_nobody_there() -> None:
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        async with bus("redis://127.0.0.1:1"):
            pass


async def test_the_wrong_password() -> None:
    with fresh("redis", requirepass="secret") as mine:
        for login in ("", ":wrong@", "stranger:wrong@"):
            with pytest.raises(BusUnavailable, match="refuses this user") as refused:
                async with bus(f"redis://{login}127.0.0.1:{mine.port}"):
                    pass
            assert "wrong" not in str(refused.value).replace("wrong number", "").replace("WRONGPASS", "")
        async with bus(mine.url) as right:
            assert await right.publish([message()]) == ()


async def test_a_user_with_the_rights_in_the_docs() -> None:
    with fresh("redis") as mine:
        rights = ("+@all", "-@dangerous", "+info", "~{shop}:*", "&{shop}:*")
        raw(mine.url).execute_command("ACL", "SETUSER", "shop", "on", ">pw", *rights)
        async with bus(f"redis://shop:pw@127.0.0.1:{mine.port}", namespace="shop") as limited:
            consumer = await limited.subscribe(group())
            assert await limited.publish([message()]) == ()
            await take(consumer, 1)
            await consumer.close()
            assert limited.capabilities.durable == "process", "it may not look, so it claims the less"


async def test_tls() -> None:
    with fresh("redis", tls=True) as mine:
        async with bus(mine.url, tls=True, ca=str(mine.ca)) as safe:
            assert await safe.publish([message()]) == ()
            assert await safe.client.ping()
        async with bus(mine.url, tls=True, verify=False) as careless:
            assert await careless.publish([message()]) == ()
        with pytest.raises(BusUnavailable, match="certificate"):
            async with bus(mine.url, tls=True):
                pass
        with pytest.raises(BusUnavailable, match="cannot be set up"):
            async with bus(mine.url, tls=True, ca=str(Path("nowhere.pem"))):
                pass


@pytest.mark.parametrize(
    ("settings", "durable"),
    [
        ({}, "power"),
        ({"appendfsync": "everysec"}, "process"),
        ({"appendonly": "no"}, "none"),
    ],
)
async def test_durable_is_what_the_server_does(settings: dict[str, str], durable: str) -> None:
    with fresh("redis", **settings) as mine:
        async with bus(mine.url) as open:
            assert open.capabilities.durable == durable


async def test_a_server_that_may_drop_streams_is_refused() -> None:
    with fresh("redis", maxmemory="100mb", maxmemory_policy="allkeys-lru") as mine:
        with pytest.raises(BusUnavailable, match="may drop messages"):
            async with bus(mine.url):
                pass
        raw(mine.url).config_set("maxmemory-policy", "volatile-lru")
        async with bus(mine.url):
            pass


async def test_namespaces_do_not_see_each_other() -> None:
    async with bus() as one, bus() as other:
        consumer = await other.subscribe(group("orders.*"))
        await one.subscribe(group("orders.*"))
        await one.publish([message(1)])
        await other.publish([message(2)])
        assert [d.message.id for d in await take(consumer, 1)] == ["m2"]
        assert [info.messages for info in await one.topics()] == [1]


async def test_a_replica_is_refused() -> None:
    with fresh("redis_replica") as mine, pytest.raises(BusUnavailable, match="is a replica"):
        async with bus(f"redis://127.0.0.1:{mine.port}"):
            pass


def test_the_session_has_a_server() -> None:
    assert raw(server("redis").url).ping()
