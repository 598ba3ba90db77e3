"""The pure parts, and what can only be provoked inside the process."""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import pytest

from tidings.cli import main, show
from tidings.cli._bus import Source
from tidings.cli._findings import size
from tidings.cli._input import Body, body_of
from tidings.cli._probe import _wrong
from tidings.cli.publish import headers_of
from tidings.kernel.errors import BusError, BusFull, PayloadRefused, PublishFailed, TidingsError
from tidings.kernel.message import Message


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b' {"a":1}\n', Body(b'{"a":1}', "application/json")),
        (b"1.50", Body(b"1.50", "application/json")),
        (b"null", Body(b"null", "application/json")),
        (b"hello ", Body(b"hello ", "text/plain")),
        (b"01", Body(b"01", "text/plain")),
        ("Grüezi".encode(), Body("Grüezi".encode(), "text/plain")),
        (b"", Body(b"", "text/plain")),
        (b"\xff\xfe", Body(b"\xff\xfe", "application/octet-stream")),
    ],
)
def test_body(raw: bytes, body: Body) -> None:
    assert body_of(raw) == body


@pytest.mark.parametrize("raw", [b"{", b'{"a": NaN}', b"[1,]", b"NaN", b'"open', b"[" * 100_000])
def test_body_that_was_meant_to_be_json(raw: bytes) -> None:
    with pytest.raises(PayloadRefused):
        body_of(raw)
    assert body_of(raw, text=True).content_type == "text/plain"


def test_headers() -> None:
    assert headers_of(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h"), (93784, "1d 2h"), (-5, "0s")]
)
def test_ago(seconds: float, text: str) -> None:
    assert show.ago(time.time() - seconds - 0.01) == text


@pytest.mark.parametrize(
    "url",
    [
        "nats://me:s3cr3t@host:4222",
        "nats://s3cr3t@host",
        "redis+sentinel://host/main?sentinel_password=s3cr3t",
        "postgresql://host/shop?sslpassword=s3cr3t",
    ],
)
def test_secrets_are_hidden(url: str) -> None:
    told = str(Source(url, ""))
    assert "host" in told
    assert "s3cr3t" not in told


def test_a_bus_as_it_is_shown() -> None:
    assert str(Source("nats://host", "")) == "nats://host"
    assert str(Source("sqlite:////tmp/a.db?lease=1s", "")) == "sqlite:////tmp/a.db"


@pytest.mark.parametrize(
    ("count", "text"), [(2**24, "16 MiB"), (1008 * 2**10, "1008 KiB"), (999, "999 bytes"), (1.5 * 2**40, "1.5 TiB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_an_error_that_sends_to_doctor_does_not_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDINGS_DEBUG", raising=False)
    assert _wrong("answers", BusError("it broke")).mend == "`tidings explain TDG-E020`"
    assert _wrong("answers", BusError("it broke", mend="mend it")).mend == "mend it"


@pytest.mark.parametrize(
    ("body", "content_type", "line"),
    [
        (b'{"a":\n1}', "application/json", '{"a":1}'),
        (b"{broken", "application/json", "<7 bytes, application/json: {broken>"),
        (b"text\r\n", "text/plain; charset=utf-8", "text\\r\\n"),
        (b"\xff", "text/plain", "<1 bytes, text/plain: ff>"),
        (b'{"a":1}', "application/vnd.shop+json", '{"a":1}'),
        (b"loose text", "", "loose text"),
        (b"", "application/json", ""),
        (b"\x00" * 30, "image/png", f"<30 bytes, image/png: {'00 ' * 23}00…>"),
    ],
)
def test_body_on_a_line(body: bytes, content_type: str, line: str) -> None:
    assert show.body_line(Message("a", body=body, content_type=content_type)) == line


def provoke(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "tidings.demo", types.SimpleNamespace(main=fail))
    return main(["demo"])


def test_unexpected_exception_is_one_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TIDINGS_DEBUG", raising=False)
    assert provoke(monkeypatch, RuntimeError("boom\nand more")) == 1
    told = capsys.readouterr().err
    assert told == "TDG-E000: RuntimeError: boom\n  mend:  run again with TIDINGS_DEBUG=1 for the traceback\n"
    monkeypatch.setenv("TIDINGS_DEBUG", "1")
    assert provoke(monkeypatch, RuntimeError("boom")) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BusFull("full"), 3),
        (PublishFailed("2 of 3"), 1),
        (TidingsError("else"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    assert provoke(monkeypatch, error) == code


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    stub = types.SimpleNamespace(main=lambda *given: called.append(given))
    monkeypatch.setitem(sys.modules, "tidings.demo", stub)
    assert main(["demo", "--for", "1m", "--plain", "--url", "sqlite:///x.db"]) == 0
    assert main(["demo"]) == 0
    assert called == [("sqlite:///x.db", 60.0, True), (None, None, False)]


def test_demo_without_psutil(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert provoke(monkeypatch, ModuleNotFoundError("No module named 'psutil'", name="psutil")) == 2
    told = capsys.readouterr().err
    assert told.startswith("TDG-E007")
    assert "pip install 'tidings[demo]'" in told
