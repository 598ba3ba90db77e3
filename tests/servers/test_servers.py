"""The servers' own script, on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from tests.servers import NotStarted, Server, cluster, fresh, server, session
from tests.servers.__main__ import NAMES as NAMES_BY_HAND
from tests.servers.base import exchange, free_port
from tests.servers.postgres import NotRoot
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.redis import Redis

REFUSED = (OSError, EOFError)  # whatever a client meets where nobody is
ROOT = Path(__file__).parents[2]
QUICK = ("postgres", "nats", "redis", "sentinel", "mosquitto")
SLOW = ("pgbouncer", "rabbitmq", "kafka", "artemis")
FASTER: dict[str, dict[str, Any]] = {"rabbitmq": {"plugins": ("rabbitmq_management",)}}
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def gone(pids: list[int], *paths: Path) -> bool:
    return not any(alive(pid) for pid in pids) and not any(path.exists() for path in paths)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


# -- a life --------------------------------------------------------------------------------------------------------


def kept_by_redis(mine: Server) -> Iterator[None]:
    assert isinstance(mine, Redis)
    mine.ask("SET a 1")
    yield
    assert mine.ask("GET a", "\r\n1\r\n") == "$1\r\n1\r\n"


def kept_by_postgres(mine: Server) -> Iterator[None]:
    assert isinstance(mine, NotRoot)
    mine.ask("create table kept as select 7 as n")
    yield
    assert mine.ask("select n from kept") == "7"


def kept_by_nats(mine: Server) -> Iterator[None]:
    publish = b"SUB i 1\r\nPUB $JS.API.STREAM.CREATE.S i 31\r\n" + b'{"name":"S","subjects":["s.*"]}' + b"\r\n"
    exchange(mine.port, b'CONNECT {"verbose":false}\r\n' + publish, b"stream_create_response")
    exchange(mine.port, b'CONNECT {"verbose":false}\r\nSUB i 1\r\nPUB s.a i 2\r\nhi\r\n', b'"seq":1')
    yield
    exchange(mine.port, b'CONNECT {"verbose":false}\r\nSUB i 1\r\nPUB s.a i 2\r\nhi\r\n', b'"seq":2')


def kept_by_rabbitmq(mine: Server) -> Iterator[None]:
    assert isinstance(mine, RabbitMQ)
    mine.api("PUT", "/api/queues/%2F/kept", '{"durable": true, "arguments": {"x-queue-type": "quorum"}}')
    message = {"routing_key": "kept", "payload": "hi", "payload_encoding": "string", "properties": {"delivery_mode": 2}}
    assert "true" in mine.api("POST", "/api/exchanges/%2F/amq.default/publish", json.dumps(message))
    time.sleep(2)  # see RabbitMQ
    yield
    get = json.dumps({"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"})
    assert json.loads(mine.api("POST", "/api/queues/%2F/kept/get", get))[0]["payload"] == "hi"


def kept_by_kafka(mine: Server) -> Iterator[None]:
    from confluent_kafka import Consumer, Producer, TopicPartition
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    to: dict[str, str | int | float | bool] = {"bootstrap.servers": f"{mine.host}:{mine.port}"}
    admin = AdminClient(to)
    admin.create_topics([NewTopic("kept", 1)])["kept"].result(10)
    producer = Producer(to)
    producer.produce("kept", b"hi")
    assert producer.flush(10) == 0
    yield
    consumer = Consumer(to | {"group.id": "g", "enable.auto.commit": False})
    consumer.assign([TopicPartition("kept", 0, 0)])
    message = consumer.poll(10)
    consumer.close()
    assert message is not None
    assert message.value() == b"hi"


def kept_by_others(mine: Server) -> Iterator[None]:
    yield


KEPT: dict[str, Callable[[Server], Iterator[None]]] = {
    "redis": kept_by_redis,
    "postgres": kept_by_postgres,
    "nats": kept_by_nats,
    "rabbitmq": kept_by_rabbitmq,
    "kafka": kept_by_kafka,
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_killed_comes_back_with_what_it_stored_and_leaves_nothing(name: str) -> None:
    with fresh(name, **FASTER.get(name, {})) as mine:
        assert mine._process is not None
        url, keeper = mine.url, Path(f"/proc/{mine._process.pid}")
        kept = KEPT.get(name, kept_by_others)(mine)
        next(kept)
        before = mine.pids()
        mine.kill()
        assert not mine.running
        assert gone(before)
        with pytest.raises(REFUSED):
            mine.check()
        mine.start()
        assert mine.url == url
        assert list(kept) == []
        both = (mine, *mine.behind.values())
        everything = [pid for each in both for pid in each.pids()]
    assert gone(everything, keeper, *(each.folder for each in both))


@pytest.mark.parametrize("name", NAMES)
def test_it_stops_when_asked(name: str) -> None:
    with fresh(name, **FASTER.get(name, {})) as mine:
        begun = time.monotonic()
        mine.stop()
        assert time.monotonic() - begun < 19  # by itself: force comes after 20 s
        assert not mine.running


def test_a_paused_server_is_silent_and_goes_on() -> None:
    with fresh("redis") as mine:
        mine.pause()
        with pytest.raises(TimeoutError):
            exchange(mine.port, b"PING\r\n", b"+PONG", timeout=0.2)
        mine.resume()
        mine.check()
        mine.pause()
        mine.kill()  # of a paused one
        mine.start()


def test_its_port_is_free_again_while_clients_hang_on() -> None:
    with fresh("redis") as mine, socket.create_connection((mine.host, mine.port)) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        mine.restart()


async def test_a_partition_by_proxy() -> None:
    with fresh("nats") as mine:
        async with mine.proxied() as (url, proxy):
            client = await nats.connect(url, ping_interval=0.1, max_outstanding_pings=1, reconnect_time_wait=0.05)
            proxy.partition(refuse=True)
            for _ in range(100):
                if not client.is_connected:
                    break
                await asyncio.sleep(0.05)
            assert not client.is_connected
            proxy.heal()
            await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nats", "redis", "kafka"])
def test_a_cluster_goes_on_without_one_node(name: str) -> None:
    with cluster(name) as three:
        assert three.url.count(",") == 2
        three.nodes[0].kill()
        three.nodes[1].wait()
        three.nodes[0].start()
        pids = [pid for node in three.nodes for pid in node.pids()]
    assert gone(pids, *(node.folder for node in three.nodes))


# -- TLS and passwords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nats", "postgres", "redis", "mosquitto"])
def test_tls(name: str) -> None:
    with fresh(name, tls=True) as mine:
        assert mine.tls is not None
        assert mine.ca is not None
        assert mine.url.split(":")[0] in ("nats+tls", "postgresql", "rediss", "mqtts")
        if name not in ("nats", "postgres"):  # where TLS comes after a greeting
            context = ssl.create_default_context(cafile=mine.ca)
            plain = socket.create_connection((mine.host, mine.port))
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                assert secure.version() == "TLSv1.3"


def test_tls_and_a_password() -> None:
    with fresh("redis", tls=True, requirepass="secret") as mine:
        assert mine.url == f"rediss://:secret@127.0.0.1:{mine.port}"
        assert isinstance(mine, Redis)
        assert mine.ask("PING") == "+PONG\r\n"
        with pytest.raises(REFUSED):
            exchange(mine.port, b"PING\r\n", b"+PONG")


# -- what cannot be had --------------------------------------------------------------------------------------------


def test_a_missing_program_skips_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match=r"redis-server is missing: python -m tests.servers --install"):
        fresh("redis").__enter__()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="redis-server is missing"):
        fresh("redis").__enter__()


def test_the_users_own_server_is_used_and_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_TEST_REDIS", "redis://somewhere:1")
    theirs = server("redis")
    assert (theirs.url, theirs.ours) == ("redis://somewhere:1", False)
    for act in (theirs.kill, theirs.restart, theirs.pause, theirs.stop):
        with pytest.raises(pytest.skip.Exception, match="not ours"):
            act()
    with pytest.raises(pytest.skip.Exception, match="TIDINGS_TEST_REDIS_STREAM is not set"):
        theirs.url_of("stream")


def test_the_users_own_server_is_asked_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh("postgres") as mine:
        monkeypatch.setenv("TIDINGS_TEST_POSTGRES", mine.url)
        theirs = server("postgres")
        assert isinstance(theirs, NotRoot)
        assert (theirs.host, theirs.port, theirs.ask("select 7")) == (mine.host, mine.port, "7")


def test_one_that_does_not_start_shows_its_log() -> None:
    with pytest.raises(NotStarted, match=r"it ended\n(.*\n)*.*Bad directive"), fresh("redis", nonsense="yes"):
        pass


def test_one_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redis, "patience", 0.2)
    monkeypatch.setattr(Redis, "check", lambda self: exchange(self.port, b"PING\r\n", b"-PONG", timeout=0.1))
    with pytest.raises(NotStarted, match="no right answer in 0 s"), fresh("redis"):
        pass


# -- nobody is left behind -----------------------------------------------------------------------------------------

SCRIPT = """
import sys, time, json
from tests.servers import session
name = sys.argv[1]
mine = session.get(name)
print(json.dumps([mine.url, mine.pids(), str(mine.folder)]), flush=True)
sys.stdin.readline()
"""


class Other:
    """Another process that uses a server of its session."""

    def __init__(self, name: str, **env: str) -> None:
        command = [sys.executable, "-c", SCRIPT, name]
        alone = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_TESTRUNUID"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=alone | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url, self.pids, folder = json.loads(self.process.stdout.readline())
        self.folder = Path(folder)

    def end(self, number: int | None = None) -> None:
        if number is None:
            self.process.communicate("\n", timeout=20)
        else:
            self.process.send_signal(number)
            self.process.communicate(timeout=20)


def shared_memory(folder: Path) -> str:
    """The id of PostgreSQL's segment, which is outside its folder."""
    return (folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]


def all_shared_memory() -> list[str]:
    return subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.slow
def test_not_even_a_daemon_survives_a_killed_user() -> None:
    other = Other("rabbitmq")  # with Erlang's port mapper, in a session of its own
    other.end(signal.SIGKILL)
    assert until(lambda: gone(other.pids, other.folder))


@pytest.mark.parametrize("how", [None, signal.SIGKILL])
def test_it_ends_with_its_user_however_that_ends(how: int | None) -> None:
    other = Other("postgres")
    assert len(other.pids) > 3
    memory = shared_memory(other.folder)
    other.end(how)
    assert until(lambda: gone(other.pids, other.folder))
    assert memory not in all_shared_memory()


def test_a_killed_postgres_leaves_no_shared_memory() -> None:
    with fresh("postgres") as mine:
        memory = shared_memory(mine.folder)
        mine.kill()
        assert memory in all_shared_memory()
    assert memory not in all_shared_memory()


def test_it_ends_with_its_keeper() -> None:
    with fresh("redis") as mine:
        (pid,) = mine.pids()
        keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        assert until(lambda: not alive(pid))
        with pytest.raises(REFUSED):
            mine.check()
    assert not mine.folder.exists()


def test_workers_of_one_session_share_a_server_until_the_last_leaves() -> None:
    run = {"PYTEST_XDIST_TESTRUNUID": f"test{os.getpid()}"}
    first, second = Other("redis", **run), Other("redis", **run)
    assert (first.url, first.pids) == (second.url, second.pids)
    first.end(signal.SIGKILL)
    assert exchange(int(second.url.rpartition(":")[2]), b"PING\r\n", b"+PONG")
    third = Other("redis", **run)
    assert third.url == first.url
    second.end()
    third.end()
    assert until(lambda: gone(first.pids, first.folder))
    assert not list(Path(first.folder).parent.glob(f"tidings-redis-test{os.getpid()}*"))


def test_together() -> None:
    started = session.start_all(["redis", "nats", "mosquitto"])
    assert [type(each).__name__ for each in started.values()] == ["Redis", "NATS", "Mosquitto"]
    assert started["redis"] is session.get("redis")


def test_by_hand() -> None:
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_XDIST_TESTRUNUID"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers", "redis", "nats"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or "ready" not in lines[-1]:
        lines.append(process.stdout.readline())
    (url,) = (line.split("'")[1] for line in lines if line.startswith("export TIDINGS_TEST_REDIS="))
    assert exchange(int(url.rpartition(":")[2]), b"PING\r\n", b"+PONG")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()
    with pytest.raises(REFUSED):
        exchange(int(url.rpartition(":")[2]), b"PING\r\n", b"+PONG")


def test_the_compose_file_has_the_same_servers_on_loopback_ports() -> None:
    text = (ROOT / "compose.yaml").read_text()
    services = text.split("\nservices:")[1].split("\nconfigs:")[0]
    brokers = sorted({*NAMES_BY_HAND} - {"chromium"})  # a browser must see this machine's loopback: no container does
    assert sorted(re.findall(r"^  (\w+):$", services, re.M)) == brokers
    assert all(f"#   export TIDINGS_TEST_{name.upper()}=" in text for name in brokers)
    published = re.findall(r'"([^"]*:\d+)"', "".join(re.findall(r"ports: (.*)", services)))
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_ports_are_below_those_of_outgoing_connections() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < low for _ in range(100))
