"""``tidings serve``: what it says, what it refuses, what it logs, how it ends; and ``tidings token`` beside it."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import tomllib

import httpx
import pytest

from .conftest import SHOP, Running, Shell


def listening(shell: Shell, *words: str) -> tuple[Running, str]:
    """A server on a free port, and its URL."""
    running = shell.start("serve", "--port", "0", *words)
    line = running.until("HTTP, WebSocket")
    running.until("Try, in other terminals")
    return running, line.split()[-1]


def post(url: str, token: str = "", **more: str) -> int:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    answer = httpx.post(f"{url}/topics/orders.placed", json={"id": "A1", "total": 1.0}, headers=headers | more)
    return answer.status_code


def test_says_where_it_listens_and_what_to_try(nowhere: Shell) -> None:
    running, url = listening(nowhere)
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    assert post(url) == 202
    assert running.end() == 0
    said = "".join(running.lines)
    assert f"opens sqlite:///{nowhere.folder}/tidings.db (process {running.process.pid})" in said
    assert f'curl {url}/topics/hello.world --json \'{{"text": "hello"}}\'' in said
    assert running.lines[-1] == "stopped\n"
    assert nowhere("topics", "--url", "sqlite:///tidings.db", "--json").json[0]["name"] == "orders.placed"


def test_as_json_on_a_unix_socket_with_an_app(nowhere: Shell) -> None:
    nowhere.write("shop.py", SHOP)
    words = ["--port", "0", "--json", "--socket", "s", "--grpc", "127.0.0.1:0"]
    running = nowhere.start("serve", "shop:app", *words)
    told = json.loads(running.until('"http"'))
    assert (told["pid"], told["handlers"]) == (running.process.pid, 2 + 1)
    assert told["bus"] == f"sqlite:///{nowhere.folder}/shop.db"
    assert told["http"][1] == "unix:s"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", told["grpc"][0])
    assert post(told["http"][0]) == 202
    running.until("billed A1")
    assert httpx.post(f"{told['http'][0]}/requests/prices.quote", json="tea").json() == 4.5
    assert running.end(signal.SIGINT) == 0
    assert json.loads(running.lines[-1]) == {"stopped": True}
    assert not (nowhere.folder / "s").exists()


def test_refuses_what_would_be_open_to_all(nowhere: Shell) -> None:
    done = nowhere("serve", "--host", "0.0.0.0", "--port", "0", code=2)
    assert "nobody has to say who it is, and everybody could do everything" in done.err
    assert "tidings token add NAME" in done.err
    assert done.out == ""


def test_refuses_what_it_cannot_do(nowhere: Shell) -> None:
    nowhere.write("tidings.toml", "prot = 1\n")
    nowhere.write("empty.toml", "")
    empty = ("serve", "--config", "empty.toml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases: list[tuple[str, int, list[str]]] = [
            ("did you mean 'port'?", 2, ["serve"]),
            ("there is no file none.toml", 2, ["serve", "--config", "none.toml"]),
            ("which bus?", 2, [*empty, "--engine", "nats", "--url", "memory://"]),
            ("invalid enum value 'kafka'", 2, [*empty, "--engine", "kafka"]),
            (f"127.0.0.1:{port} cannot be listened on", 2, [*empty, "--port", port]),
            ("no/where.db", 3, [*empty, "--port", "0", "--url", "sqlite:///no/where.db"]),
            ("there is no module 'no_module'", 2, [*empty, "no_module:app"]),
        ]
        results = nowhere.all([words for _, _, words in cases])
    for (what, expected, _), (code, out, err, _) in zip(cases, results, strict=True):
        assert what in err
        assert (code, out) == (expected, "")


def test_prints_what_it_would_do(nowhere: Shell) -> None:
    nowhere.write("tidings.toml", 'url = "nats://me:hidden-password@127.0.0.1:1"\n[limits]\nrate = 5.0\n')
    nowhere.env["TIDINGS_SERVE_PORT"] = "9000"
    done = nowhere("serve", "--print-config", "--host", "::1")
    told = tomllib.loads(done.out)
    assert (told["host"], told["port"], told["limits"]["rate"]) == ("::1", 9000, 5.0)
    assert "hidden-password" not in done.out
    assert nowhere("serve", "--print-config", "--json").json["settings"]["port"] == 9000
    nowhere.write("tidings.toml", "[nats]\nmqtt = 1999\nreplicas = 3\n")
    told = nowhere("serve", "--print-config", "--json", "--engine", "nats", "--data", "d").json
    assert told["settings"]["nats"]["mqtt"] == told["engine"]["mqtt"]["port"] == 1999
    assert told["engine"]["jetstream"]["store_dir"] == f"{nowhere.folder}/d"


def test_no_token_is_ever_logged(nowhere: Shell) -> None:
    nowhere.env["TIDINGS_LOG"] = "DEBUG"
    token = nowhere("token", "add", "shop", "--publish", "orders.>", "--subscribe", "orders.>").out.strip()
    wrong = "tdg_" + "wrong" * 8
    running, url = listening(nowhere, "--access-log")
    with httpx.Client(base_url=url) as client:
        for each in (token, wrong):
            headers = {"authorization": f"Bearer {each}"}
            client.post("/topics/orders.placed", json=1, headers=headers)
            client.post(f"/topics/orders.placed?access_token={each}", json=1)
            client.get(f"/topics/orders.>?token={each}")
            client.get("/metrics", headers=headers)
            upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
            more = {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-protocol": f"bearer.{each}"}
            with client.stream("GET", "/ws", headers=upgrade | more) as answer:
                assert answer.status_code in (101, 403, 401)
            client.post("/topics/orders.placed", content=b"x", headers={"authorization": f"Basic {each}"})
    assert running.end() == 0
    said = "".join(running.lines)
    assert "POST /topics/orders.placed 202" in said
    assert "POST /topics/orders.placed 401" in said
    for each in (token, wrong):
        assert each not in said
        assert each.removeprefix("tdg_") not in said


@pytest.mark.slow
def test_tokens_are_read_anew_on_sighup(nowhere: Shell) -> None:
    running, url = listening(nowhere)
    assert post(url) == 202
    token = nowhere("token", "add", "shop", "--publish", "orders.>", "--json").json["token"]
    assert post(url, token) == 401
    running.process.send_signal(signal.SIGHUP)
    running.until("access was read anew: shop, nobody else")
    assert (post(url), post(url, token)) == (401, 202)
    nowhere("token", "add", "prometheus", "--admin")
    nowhere("token", "revoke", "shop")
    running.process.send_signal(signal.SIGHUP)
    running.until("access was read anew: prometheus, nobody else")
    assert post(url, token) == 401
    nowhere("token", "revoke", "prometheus")
    running.process.send_signal(signal.SIGHUP)
    running.until("access was read anew: nobody else")  # the last is gone, and the door is not open again
    assert post(url) == 401
    nowhere.write("tidings-tokens.json", "nonsense")
    running.process.send_signal(signal.SIGHUP)
    running.until("access is as before")
    assert post(url) == 401
    assert running.end() == 0


def test_a_token_is_shown_once_and_only_its_hash_is_kept(nowhere: Shell) -> None:
    done = nowhere("token", "add", "shop", "--publish", "orders.>", "--publish", "stock.*", "--group", "billing")
    token = done.out.strip()
    assert re.fullmatch(r"tdg_[\w-]{43}", token)
    assert "tidings.audit" in done.err
    assert "added the token of shop" in done.err
    assert token not in done.err
    file = nowhere.folder / "tidings-tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in file.read_text()
    listed = nowhere("token")
    assert "publish orders.>, stock.* · group billing" in listed.out
    (row,) = nowhere("token", "ls", "--json").json
    assert row["rights"]["publish"] == ["orders.>", "stock.*"]
    assert "token" not in row


def test_tokens_are_where_the_configuration_is(nowhere: Shell) -> None:
    nowhere.write("etc/tidings.toml", 'tokens = "who.json"\n')
    nowhere("token", "add", "shop", "--member", "--config", "etc/tidings.toml")
    assert (nowhere.folder / "etc" / "who.json").exists()
    assert "shop" in nowhere("token", "ls", "--config", "etc/tidings.toml").out


def test_token_refuses_and_revokes(nowhere: Shell) -> None:
    cases = [
        ("", ["token", "add", "shop", "--admin"]),
        ("'other' may do nothing", ["token", "add", "other"]),
        ("'shop' has a token already", ["token", "add", "shop", "--admin"]),
        ("'a..b' is no valid pattern", ["token", "add", "third", "--publish", "a..b"]),
        ("did you mean 'shop'?", ["token", "revoke", "shpo"]),
        ("", ["token", "revoke", "shop"]),
        ("no tokens in ", ["token", "ls"]),
        ("'shop' has no token", ["token", "revoke", "shop"]),
    ]
    for (what, _), (code, out, err, _) in zip(cases, nowhere.all([words for _, words in cases]), strict=True):
        assert what in err
        if what and "no tokens" not in what:
            assert (code, out) == (2, "")
        else:
            assert code == 0
    assert json.loads((nowhere.folder / "tidings-tokens.json").read_text()) == []
