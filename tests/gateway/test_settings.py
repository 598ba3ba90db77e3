"""One configuration: of flags, the environment and a file; what is wrong in it is named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidings.gateway.engine.configuration import Cluster, Options
from tidings.gateway.limits import Limits
from tidings.gateway.settings import Settings, load, printed, without_secrets
from tidings.kernel.errors import NotFound, UsageError

WHOLE = """
url = "sqlite:///bus.db"
port = 9000
grpc = ["127.0.0.1:9001", "unix:tidings.sock"]

[tls]
cert = "server.pem"
key = "/etc/tidings/server.key"

[limits]
rate = 10.0

[anonymous]
subscribe = ["public.>"]

[[clients]]
name = "shop"
token = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
rights.publish = ["orders.>"]
rights.admin = true

[[webhooks.in]]
name = "github"
topic = "github.{type}"
scheme = "github"
secrets = ["plain-text-secret", "env:GITHUB_SECRET"]
"""


def told(folder: Path, text: str, flags: dict[str, Any] | None = None, **variables: str) -> Settings:
    file = folder / "tidings.toml"
    file.write_text(text)
    return load(file, flags or {}, variables)


def test_flags_before_the_environment_before_the_file(tmp_path: Path) -> None:
    text = 'host = "a"\nport = 1\n[limits]\nrate = 1.0\nbody = 1\n'
    settings = told(
        tmp_path, text, {"host": "c"}, TIDINGS_SERVE_HOST="b", TIDINGS_SERVE_PORT="2", TIDINGS_SERVE_LIMITS_RATE="2"
    )
    assert (settings.host, settings.port, settings.limits) == ("c", 2, Limits(rate=2.0, body=1))


def test_the_environment_alone() -> None:
    variables = {
        "TIDINGS_SERVE_GRPC": "127.0.0.1:1, unix:a.sock",
        "TIDINGS_SERVE_ACCESS_LOG": "true",
        "TIDINGS_SERVE_TLS_CERT": "a.pem",
        "TIDINGS_URL": "memory://",
    }
    settings = load(None, {}, variables)
    assert (settings.grpc, settings.access_log) == (("127.0.0.1:1", "unix:a.sock"), True)
    assert settings.tls.cert == "a.pem"


def test_the_file_is_found_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}, {}) == Settings()
    (tmp_path / "tidings.toml").write_text("port = 5\n")
    assert load(None, {}, {}).port == 5


def test_paths_of_the_file_are_relative_to_it(tmp_path: Path) -> None:
    settings = told(tmp_path, WHOLE)
    assert settings.url == f"sqlite:///{tmp_path}/bus.db"
    assert (settings.tls.cert, settings.tls.key) == (f"{tmp_path}/server.pem", "/etc/tidings/server.key")
    assert settings.tokens == f"{tmp_path}/tidings-tokens.json"


@pytest.mark.parametrize(
    ("text", "what", "mend"),
    [
        ("prot = 1\n", "nothing is called 'prot'", "did you mean 'port'?"),
        ("[limits]\nrates = 1\n", "nothing is called 'rates' in limits", "did you mean 'rate'?"),
        (
            '[[clients]]\nname = "a"\nrights.publsh = ["a"]\n',
            "nothing is called 'publsh' in clients[0].rights",
            "did you mean 'publish'?",
        ),
        ("[anonymous]\nsubscibe = []\n", "nothing is called 'subscibe' in anonymous", "did you mean 'subscribe'?"),
        ("port = 'x'\n", "expected `int`, got `str` in port", ""),
        ("port = 70000\n", "expected `int` <= 65535 in port", ""),
        ("engine = 'kafka'\n", "invalid enum value 'kafka' in engine", ""),
        ("[[clients]]\ntoken = ''\n", "object missing required field `name` in clients[0]", ""),
        ("port = \n", "tidings.toml cannot be read", ""),
        ("[anonymous]\nsubscribe = ['a..b']\n", "'a..b' is no valid pattern", ""),
        (
            "[[webhooks.in]]\nname = 'a'\ntopic = 'a'\nsecret = 'b'\n",
            "nothing is called 'secret' in webhooks.in[0]",
            "",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, what: str, mend: str) -> None:
    with pytest.raises(UsageError) as raised:
        told(tmp_path, text)
    assert what in raised.value.what
    assert mend in raised.value.mend
    assert raised.value.where == str(tmp_path / "tidings.toml")


def test_a_token_in_the_clear_is_refused_and_not_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kept as its hash") as raised:
        told(tmp_path, '[[clients]]\nname = "a"\ntoken = "tdg_secret"\n')
    assert "tdg_secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("TIDINGS_SERVE_PROT", "1", "nothing is called TIDINGS_SERVE_PROT"),
        ("TIDINGS_SERVE_PORT", "many", "TIDINGS_SERVE_PORT cannot be 'many'"),
        ("TIDINGS_SERVE_PORT", "1.5", "expected `int`, got `float` in port"),
        ("TIDINGS_SERVE_INSECURE", "perhaps", "TIDINGS_SERVE_INSECURE cannot be 'perhaps'"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(name: str, value: str, what: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(None, {}, {name: value})
    assert what in raised.value.what


def test_no_file() -> None:
    with pytest.raises(NotFound, match=r"there is no file nowhere\.toml"):
        load(Path("nowhere.toml"), {}, {})


def test_printed_it_can_be_read_again_and_has_no_secret(tmp_path: Path) -> None:
    settings = told(tmp_path, WHOLE)
    text = printed(without_secrets(settings, settings.url))
    assert "plain-text-secret" not in text
    assert "env:GITHUB_SECRET" in text
    again = msgspec.convert(tomllib.loads(text.replace("(hidden)", "plain-text-secret")), Settings)
    assert again == settings


def test_a_cluster_shows_no_password(tmp_path: Path) -> None:
    cluster = Cluster(listen="192.0.2.1:6222", routes=("192.0.2.2:6222",), password="between us")
    settings = Settings(nats=Options(cluster=cluster))
    assert "between us" not in repr(settings) + printed(without_secrets(settings, ""))
    with pytest.raises(UsageError, match="a route of the cluster has a user or a password") as raised:
        told(tmp_path, "[nats.cluster]\nlisten = 'h:1'\nroutes = ['u:between-us@h:2']\n")
    assert "between-us" not in str(raised.value)
