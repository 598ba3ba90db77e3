"""TLS and logins of the brokers, each on a real server and by URL alone: what is right works, what is wrong is told.

No secret is ever shown: not in an error, nor in a log at its most talkative.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from tests.servers import Server, fresh, server
from tests.servers.base import certificates, exchange
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMQ

from tidings import App, Backoff, Message, Service, Topic
from tidings.kernel.errors import BusUnavailable, InvalidOption, InvalidURL
from tidings.transports.kafka import Kafka
from tidings.urls import options_for

RIGHT, WRONG = "s3cret", "wr0ng"
SECRET = re.compile(f"{RIGHT}|{WRONG}|S[ACNOUX][A-Z2-7]{{56}}")  # the third: seeds of NKeys
ALIAS = "127.1"  # the same place by a name that is in no certificate
placed, late, lost = (Topic(f"orders.{name}", int) for name in ("placed", "late", "lost"))
doubled = Service("numbers.double", int, int)


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    logging.getLogger("nats").debug("heard")
    assert "heard" in caplog.messages, "not all that is logged is seen"
    said = map(logging.Formatter().format, caplog.get_records("call"))  # tracebacks, too
    assert not [text for text in said if SECRET.search(text)]


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """The files of another authority."""
    certificates(tmp_path / "stranger")
    return tmp_path / "stranger"


async def works(url: str) -> None:
    """An app publishes, handles and settles there."""
    app, came = App("shop", url), asyncio.Event()

    @app.on(placed)
    async def bill(order: int) -> None:
        came.set()

    async with asyncio.timeout(60):
        async with app:
            await app.publish(placed, 7)
            await came.wait()
        await settled(app, "shop.bill")


async def all_works(url: str) -> None:
    """Whoever has the rights that are documented can do all that takes rights."""
    app, runs = App("shop", url), list[int]()
    came = {name: asyncio.Event() for name in ("again", "late", "lost", "live", "tick")}

    @app.on(placed)
    async def bill(order: int) -> None:
        runs.append(order)
        if len(runs) == 1:
            raise ValueError("to be tried again")
        came["again"].set()

    @app.on(late)
    async def remind(order: int) -> None:
        came["late"].set()

    @app.on(lost, backoff=Backoff(attempts=1))
    async def lose(order: int) -> None:
        came["lost"].set()
        raise ValueError("to be a dead letter")

    @app.on("orders.>", live=True)
    async def watch(message: Message[Any]) -> None:
        came["live"].set()

    @app.answer(doubled)
    async def double(n: int) -> int:
        return 2 * n

    @app.every("0.2s")
    async def tick() -> None:
        came["tick"].set()

    async with asyncio.timeout(60):
        async with app:
            await app.publish_many([placed(7), late(7, delay="0.2s"), lost(7)])
            assert await app.request(doubled, 4) == 8
            for event in came.values():
                await event.wait()
        await settled(app, "shop.bill", "shop.remind", "shop.lose")


async def settled(app: App, *names: str) -> None:
    """Of those groups nothing is left."""
    async with app.connect():
        bus: Any = app.bus()
        groups = {group.name: group for group in await bus.groups()}
    assert [(g.lag, g.in_flight, g.parked) for g in map(groups.__getitem__, names)] == [(0, 0, 0)] * len(names)


async def refused(url: str, says: str) -> None:
    """An app that would go there is told why not, and does not try for ever."""
    with pytest.raises(BusUnavailable) as refusal:
        async with asyncio.timeout(30), App("shop", url).connect():
            pass
    assert re.search(says, str(refusal.value)), f"{url}: {refusal.value}"
    assert not SECRET.search("".join(traceback.format_exception(refusal.value)))


async def all_refused(urls: Mapping[str, str]) -> None:
    """``urls``: and what is said to each."""
    for url, says in urls.items():
        await refused(url, says)


def at(mine: Server, login: str = "", host: str = "127.0.0.1") -> str:
    return f"{login}{host}:{mine.port}"


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"redis://ann:{RIGHT}@localhost?ca=ca.pem", "ca= is for TLS.*rediss://"),
        (f"redis+sentinel://ann:{RIGHT}@localhost/main?cert=c.pem", "cert= is for TLS"),
        (f"amqp://ann:{RIGHT}@localhost?cafile=ca.pem", "cafile= is for TLS.*amqps://"),
        (f"kafka://ann:{RIGHT}@localhost?ca=ca.pem", r"ca= is for TLS.*kafka\+ssl://"),
        (f"redis://ann:{RIGHT}@localhost?nonsense=1", "nonsense"),
        (f"nats://ann:{RIGHT}@localhost/path", "path"),
        (f"amqp://ann:{RIGHT}@localhost?nonsense=1", "nonsense"),
        (f"postgresql://ann:{RIGHT}@localhost?nonsense=1", "nonsense"),
        (f"kafka://ann:{RIGHT}@localhost?nonsense=1", "nonsense"),
    ],
)
async def test_a_url_that_makes_no_sense(url: str, says: str) -> None:
    with pytest.raises(InvalidURL) as refusal:
        async with App("shop", url).connect():
            pass
    assert re.search(says, str(refusal.value), re.S)
    assert not SECRET.search("".join(traceback.format_exception(refusal.value)))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rediss://localhost?key=shop.key", "key= is for a certificate.*cert="),
        ("amqps://localhost?keyfile=shop.key", "keyfile= is for a certificate.*certfile="),
        ("nats+tls://localhost?key=shop.key", "key= is for a certificate.*certificate="),
        ("nats://localhost?key=shop.key", r"key= is for TLS.*nats\+tls://"),
        ("kafka+ssl://localhost?key=shop.key", "key= is for a certificate.*cert="),
    ],
)
async def test_a_key_is_not_left_out(url: str, says: str) -> None:
    with pytest.raises((InvalidOption, InvalidURL)) as refusal:
        async with App("shop", url).connect():
            pass
    assert re.search(says, str(refusal.value), re.S)


# -- a server without TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        pytest.param("redis", "rediss://{}", "want no TLS", marks=pytest.mark.slow),  # it waits for a command
        ("nats", "nats+tls://{}", "it offers no TLS"),
        ("postgres", "postgresql://postgres@{}/postgres?sslmode=require", "rejected SSL upgrade"),
    ],
)
async def test_tls_is_not_left_out(name: str, url: str, says: str) -> None:
    there = server(name)
    if not there.ours:
        pytest.skip(f"{there.url} may have TLS")
    await refused(url.format(at(there)), says)


# -- Redis ---------------------------------------------------------------------------------------------------------


async def test_redis(stranger: Path) -> None:
    rights = "~{shop}:* &{shop}:* +@all -@dangerous +info"  # those in docs/transports/redis.md
    with fresh("redis", tls=True, tls_auth_clients="yes", user=f"ann on >{RIGHT} {rights}") as mine:
        own, right = f"cert={mine.tls}/client.pem&key={mine.tls}/client.key", at(mine, f"ann:{RIGHT}@")
        ca = f"namespace=shop&ca={mine.ca}"
        await all_works(f"rediss://{right}?{ca}&{own}")
        await works(f"valkeys://{right}?{ca}&{own}")
        await all_refused(
            {
                f"rediss://{right}?{own}": "CERTIFICATE_VERIFY_FAILED.*\n.*ca= names",
                f"rediss://{right}?ca={stranger}/ca.pem&{own}": "CERTIFICATE_VERIFY_FAILED",
                f"rediss://{right}?{ca}": "client certificate",
                f"rediss://{right}?{ca}&cert={stranger}/client.pem&key={stranger}/client.key": "client certificate",
                f"rediss://{right}?{ca}&cert={mine.tls}/client.pem&key={stranger}/client.key": "KEY_VALUES_MISMATCH",
                f"rediss://{right}?ca=nowhere.pem": "No such file.*\n.*ca=nowhere.pem",
                f"rediss://{at(mine, f'ann:{RIGHT}@', ALIAS)}?{ca}&{own}": f"not valid for '{ALIAS}'",
                f"rediss://{at(mine, f'ann:{WRONG}@')}?{ca}&{own}": "refuses this user",
                f"redis://{right}": r"want TLS \(rediss://\)",
            }
        )


# -- NATS ----------------------------------------------------------------------------------------------------------


NATS_TOPICS = ("orders", "_group", "_dead", "_tick", "_request", "_reply", "_tidings")


def nats_rights(*publish: str, prefix: str = "") -> dict[str, list[str]]:
    """Those in docs/transports/nats.md."""
    hear = (f"{prefix}{subject}" for subject in ("_request.>", "_reply.>", "_tidings.peers"))
    return {"publish": ["$JS.API.>", "$JS.ACK.>", "_INBOX.>", *publish], "subscribe": ["_INBOX.>", *hear]}


async def test_nats(stranger: Path) -> None:
    users = [
        {"user": "ann", "password": RIGHT, "permissions": nats_rights(*(f"{topic}.>" for topic in NATS_TOPICS))},
        {"user": "bob", "password": RIGHT, "permissions": nats_rights("shop.>", prefix="shop.")},
    ]
    with fresh("nats", tls=True, verify=True, authorization={"users": users}) as mine:
        own, right = f"certificate={mine.tls}/client.pem&key={mine.tls}/client.key", at(mine, f"ann:{RIGHT}@")
        ca = f"ca={mine.ca}"
        await all_works(f"nats+tls://{right}?{ca}&{own}")
        await all_works(f"nats+tls://{at(mine, f'bob:{RIGHT}@')}?namespace=shop&{ca}&{own}")
        await all_refused(
            {
                f"nats+tls://{right}?{own}": "CERTIFICATE_VERIFY_FAILED.*\n.*ca= names",
                f"nats+tls://{right}?ca={stranger}/ca.pem&{own}": "CERTIFICATE_VERIFY_FAILED",
                f"nats+tls://{right}?{ca}": "certificate= and key=",
                f"nats+tls://{right}?{ca}&certificate={mine.tls}/client.pem&key={stranger}/client.key": "MISMATCH",
                f"nats+tls://{right}?ca=nowhere.pem": "No such file.*\n.*ca=nowhere.pem",
                f"nats+tls://{at(mine, f'ann:{RIGHT}@', ALIAS)}?{ca}&{own}": f"not valid for '{ALIAS}'",
                f"nats+tls://{at(mine, f'ann:{WRONG}@')}?{ca}&{own}": "uthorization.*\n.*user and password",
                f"nats://{right}": "CERTIFICATE_VERIFY_FAILED",
            }
        )


async def test_nats_never_goes_on_in_the_clear() -> None:
    """Not even where whoever answers says that it may: it might be no server of ours."""
    heard, visits = bytearray(), list[Any]()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(asyncio.current_task())
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","headers":true,"auth_required":true}\r\n')
        with suppress(ConnectionError):
            while some := await reader.read(65_536):
                heard.extend(some)
        writer.close()

    async with await asyncio.start_server(impostor, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refused(f"nats+tls://ann:{RIGHT}@127.0.0.1:{port}", "it offers no TLS")
        assert visits
        await asyncio.gather(*visits)
    assert not heard


async def test_nats_takes_tls_where_it_is_left_to_the_client() -> None:
    with fresh("nats", tls=True, allow_non_tls=True) as mine:
        app = App("shop", f"nats+tls://{at(mine)}?ca={mine.ca}")
        async with app.connect():
            told = await asyncio.to_thread(exchange, mine.ports["monitor"], b"GET /connz HTTP/1.0\r\n\r\n", b"]")
        assert b'"tls_version": "1.3"' in told


async def test_nats_with_a_token() -> None:
    with fresh("nats", authorization={"token": RIGHT}) as mine:
        await works(f"nats://{at(mine, f'{RIGHT}@')}")
        await all_refused(
            {f"nats://{at(mine, f'{WRONG}@')}": "uthorization.*\n.*token", f"nats://{at(mine)}": "uthorization"}
        )


def seed(folder: Path, name: str, kind: int = nkeys.PREFIX_BYTE_USER) -> Any:
    """A new key pair, its seed in a file."""
    text = nkeys.encode_seed(os.urandom(32), kind)
    (folder / name).write_bytes(text)
    return nkeys.from_seed(bytearray(text))


async def test_nats_with_a_key(tmp_path: Path) -> None:
    user = seed(tmp_path, "ann.nk")
    seed(tmp_path, "bob.nk")
    (tmp_path / "worn.nk").write_text("SUAB")
    with fresh("nats", authorization={"users": [{"nkey": user.public_key.decode()}]}) as mine:
        await works(f"nats://{at(mine)}?nkey={tmp_path}/ann.nk")
        await all_refused(
            {
                f"nats://{at(mine)}?nkey={tmp_path}/bob.nk": "uthorization",
                f"nats://{at(mine)}?nkey={tmp_path}/nobody.nk": "No such file.*nobody.nk.*\n.*nkey=",
                f"nats://{at(mine)}?nkey={tmp_path}/worn.nk": "invalid seed.*\n.*nkey=",
            }
        )


@pytest.mark.parametrize("option", ["nkey", "credentials"])
async def test_a_seed_is_not_shown(option: str, tmp_path: Path) -> None:
    """Not even where it stands instead of its file."""
    seed(tmp_path, "ann.nk")
    url = f"nats://localhost?{option}={(tmp_path / 'ann.nk').read_text()}"
    with pytest.raises(InvalidOption, match="credentials= name files") as refusal:
        async with App("shop", url).connect():
            pass
    assert not SECRET.search("".join(traceback.format_exception(refusal.value)))
    assert f"{option}='***'" in repr(options_for(url))
    with pytest.raises(InvalidURL) as another:
        options_for(url.replace("?", "/path?"))
    assert f"?{option}=***" in str(another.value)


def token(by: Any, subject: Any, name: str, claims: dict[str, Any]) -> str:
    """A JSON web token, as NATS has them."""
    told = {"iss": by.public_key.decode(), "sub": subject.public_key.decode(), "name": name, "iat": 1, "nats": claims}
    told["jti"] = base64.b32encode(hashlib.sha256(json.dumps(told).encode()).digest()).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    parts = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, told))
    return b".".join((parts, base64.urlsafe_b64encode(by.sign(parts)).rstrip(b"="))).decode()


async def test_nats_with_credentials(tmp_path: Path) -> None:
    operator = seed(tmp_path, "operator", nkeys.PREFIX_BYTE_OPERATOR)
    accounts = {name: seed(tmp_path, name, nkeys.PREFIX_BYTE_ACCOUNT) for name in ("shop", "system")}
    every = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
    storing = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    limits = {"shop": every | storing, "system": every}
    user = seed(tmp_path, "user")
    claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    (tmp_path / "ann.creds").write_text(
        "-----BEGIN NATS USER JWT-----\n"
        f"{token(accounts['shop'], user, 'ann', claims)}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{(tmp_path / 'user').read_text()}\n------END USER NKEY SEED------\n"
    )
    (tmp_path / "half.creds").write_text((tmp_path / "ann.creds").read_text().partition("--\n")[2])
    resolved = {
        pair.public_key.decode(): token(operator, pair, name, {"type": "account", "version": 2, "limits": limits[name]})
        for name, pair in accounts.items()
    }
    with fresh(
        "nats",
        operator=token(operator, operator, "operator", {"type": "operator", "version": 2}),
        system_account=accounts["system"].public_key.decode(),
        resolver="MEMORY",
        resolver_preload=resolved,
        mqtt={},
    ) as mine:
        await works(f"nats://{at(mine)}?credentials={tmp_path}/ann.creds")
        await all_refused(
            {
                f"nats://{at(mine)}": "uthorization.*\n.*credentials=",
                f"nats://{at(mine)}?credentials={tmp_path}/nobody.creds": "No such file.*nobody.creds",
                f"nats://{at(mine)}?credentials={tmp_path}/half.creds": "no 'BEGIN NATS USER JWT'.*\n.*credentials=",
            }
        )


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


async def test_a_socket_that_is_missing_is_no_matter_of_tls() -> None:
    await refused("postgresql://postgres@/postgres?host=/nowhere", "No such file.*\n.*is the server there")


async def test_postgres(stranger: Path, tmp_path: Path) -> None:
    with fresh("postgres", tls=True, password="admin") as mine:
        assert isinstance(mine, Postgres)
        for role in ("shop", "web", "client", "nobody"):  # the third is a certificate's name
            mine.ask(f"CREATE ROLE {role} LOGIN PASSWORD '{RIGHT}'")
        mine.ask("CREATE SCHEMA tidings AUTHORIZATION shop")
        right, verify = f"{RIGHT}@{at(mine)}/postgres", "sslmode=verify-full"
        ca = f"{verify}&sslrootcert={mine.ca}"
        await works(f"postgresql://shop:{right}?{ca}")
        mine.ask("GRANT USAGE ON SCHEMA tidings TO web, client")
        mine.ask("GRANT SELECT ON tidings.meta TO web, client")
        (passwords := tmp_path / "passwords").write_text(f"127.0.0.1:*:*:web:{RIGHT}\n")
        passwords.chmod(0o600)
        await all_works(f"postgresql://web@{at(mine)}/postgres?{ca}&passfile={passwords}")
        rules = mine.folder / "data" / "pg_hba.conf"
        rules.write_text(f"hostssl all client 127.0.0.1/32 cert\n{rules.read_text()}")
        mine.ask("SELECT pg_reload_conf()")
        client = f"postgresql://client@{at(mine)}/postgres?{ca}"
        await works(f"{client}&sslcert={mine.tls}/client.pem&sslkey={mine.tls}/client.key")
        await all_refused(
            {
                f"postgresql://nobody:{right}?{ca}": "permission denied for schema.*\n.*GRANT USAGE ON SCHEMA tidings",
                f"postgresql://nobody:{right}?{ca}&namespace=new": "permission denied for database.*\n.*GRANT CREATE",
                f"postgresql://shop:{right}?{verify}&sslrootcert={stranger}/ca.pem": "CERTIFICATE.*\n.*sslrootcert=",
                f"postgresql://shop:{right}?{verify}&sslrootcert=/nowhere.pem": "No such file.*\n.*sslrootcert=",
                f"postgresql://shop:{right}?{ca}&sslcert={mine.ca}&sslkey={stranger}/client.key": "MISMATCH",
                f"postgresql://shop:{RIGHT}@{at(mine, host=ALIAS)}/postgres?{ca}": f"not valid for '{ALIAS}'",
                f"postgresql://shop:{WRONG}@{at(mine)}/postgres?{ca}": "refused the login",
                f"postgresql://shop@{at(mine)}/postgres?{ca}": "refused the login",
                client: "refused the login.*\n.*client certificate",
                f"{client}&sslcert={stranger}/client.pem&sslkey={stranger}/client.key": "cannot be reached",
            }
        )


# -- RabbitMQ ------------------------------------------------------------------------------------------------------


async def test_a_name_with_reset_in_it_is_no_matter_of_tls() -> None:
    with pytest.raises(BusUnavailable) as refusal:
        async with App("shop", "amqp://preset.localhost:1").connect():
            pass
    assert "preset.localhost:1: " in str(refusal.value)
    assert "TLS" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_rabbitmq(stranger: Path) -> None:
    settings = {
        "plugins": ("rabbitmq_management", "rabbitmq_auth_mechanism_ssl"),
        "auth_mechanisms.1": "PLAIN",
        "auth_mechanisms.2": "EXTERNAL",
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
        "ssl_cert_login_from": "common_name",
    }
    with fresh("rabbitmq", tls=True, **settings) as mine:
        assert isinstance(mine, RabbitMQ)
        name = r"^tidings(\..*)?$"  # those in docs/transports/rabbitmq.md
        rights = {"configure": name, "write": r"^(tidings(\..*)?|amq\.default)$", "read": name}
        for user, given in (("ann", rights), ("client", rights), ("bob", rights | {"write": name}), ("nobody", None)):
            mine.api("PUT", f"/api/users/{user}", json.dumps({"password": RIGHT, "tags": ""}))
            if given:
                mine.api("PUT", f"/api/permissions/%2F/{user}", json.dumps(given))
        own, right = f"certfile={mine.tls}/client.pem&keyfile={mine.tls}/client.key", f"{RIGHT}@{at(mine)}"
        ca = f"cafile={mine.ca}"
        await refused(f"amqps://bob:{right}?{ca}&{own}", r"ACCESS_REFUSED(.*\n)*.*write on amq\.default")
        await all_works(f"amqps://ann:{right}?{ca}&{own}")
        await works(f"amqps://{at(mine)}?{ca}&{own}&auth=external")
        await all_refused(
            {
                f"amqps://ann:{right}?{own}": "CERTIFICATE_VERIFY_FAILED.*\n.*cafile= names",
                f"amqps://ann:{right}?cafile={stranger}/ca.pem&{own}": "CERTIFICATE_VERIFY_FAILED",
                f"amqps://ann:{right}?{ca}": "want no TLS, or a client certificate",
                f"amqps://ann:{right}?{ca}&certfile={mine.tls}/client.pem&keyfile={stranger}/client.key": "MISMATCH",
                f"amqps://ann:{right}?cafile=nowhere.pem": "No such file.*\n.*cafile=nowhere.pem",
                f"amqps://ann:{RIGHT}@{at(mine, host=ALIAS)}?{ca}&{own}": f"not valid for '{ALIAS}'",
                f"amqps://ann:{WRONG}@{at(mine)}?{ca}&{own}": "refuses the user 'ann'",
                f"amqps://nobody:{right}?{ca}&{own}": "no vhost '/', or none that the user 'nobody' may use",
                f"amqp://ann:{right}": "want TLS",
                f"amqps://127.0.0.1:{mine.ports['management']}?{ca}": "WRONG_VERSION_NUMBER.*\n.*want no TLS",
            }
        )


# -- Kafka ---------------------------------------------------------------------------------------------------------


def test_kafkas_own_properties_may_ask_for_tls() -> None:
    own = {"security.protocol": "sasl_ssl", "ssl.certificate.pem": "…"}
    config = Kafka(ca="ca.pem", key="shop.key", client=own).config_for(lambda error: None)
    assert (config["security.protocol"], config["ssl.ca.location"]) == ("sasl_ssl", "ca.pem")
    with pytest.raises(InvalidOption, match="ca= is for TLS"):
        Kafka(ca="ca.pem", client={"security.protocol": "SASL_PLAINTEXT"})


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_kafka(stranger: Path) -> None:
    other = {  # whoever comes by the proxy has no user, but a certificate
        "listener_security_protocol_map": "CLIENT:SASL_SSL,PROXY:SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listener_name_proxy_ssl_client_auth": "required",
    }
    with fresh("kafka", tls=True, sasl=f"ann:{RIGHT}", **other) as mine:
        right, ca = at(mine, f"ann:{RIGHT}@"), f"ca={mine.ca}"
        await works(f"kafka+ssl://{right}?{ca}&mechanism=SCRAM-SHA-256")
        await works(f"kafka+ssl://{right}?{ca}")
        async with mine.proxied() as (_, proxy):
            own = f"cert={mine.tls}/client.pem&key={mine.tls}/client.key"
            door = f"127.0.0.1:{proxy.port}"
            await works(f"kafka+ssl://{door}?{ca}&{own}")
            wrong = {
                f"kafka+ssl://{door}?{ca}": "(?i)certificate",
                f"kafka+ssl://{right}": "certificate verify failed.*\n.*ca=",
                f"kafka+ssl://{right}?ca={stranger}/ca.pem": "certificate verify failed",
                f"kafka+ssl://{right}?ca=nowhere.pem": "ssl.ca.location.*\n.*ca=, cert= and key=",
                f"kafka+ssl://{right}?{ca}&cert={mine.tls}/client.pem&key={stranger}/client.key": "mismatch",
                f"kafka+ssl://{at(mine, f'ann:{RIGHT}@', ALIAS)}?{ca}": "certificate verify failed",
                f"kafka+ssl://{at(mine, f'ann:{WRONG}@')}?{ca}": "AUTHENTICATION.*\n.*user, password",
                f"kafka+ssl://{right}?{ca}&mechanism=SCRAM-SHA-512": "mechanism",
                f"kafka+ssl://{right}?{ca}&mechanism=NONSENSE": "NONSENSE.*\n.*SCRAM-SHA-256",
                f"kafka+ssl://{at(mine)}?{ca}&connect=2": "or a user",
                f"kafka://{right}?connect=2": r"want TLS \(kafka\+ssl://\)",
                f"kafka+ssl://127.0.0.1:{mine.ports['internal']}?{ca}": "closed by peer.*\n.*scheme",
            }
            await asyncio.gather(*(refused(url, says) for url, says in wrong.items()))  # each takes seconds of waiting
