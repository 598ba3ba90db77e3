"""Who may come, as it is read: at the start, and anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidings.gateway import tokens
from tidings.gateway.access import Access
from tidings.gateway.admission import admitted, read_anew
from tidings.gateway.rights import EVERYTHING, Rights
from tidings.gateway.settings import TLS, Settings
from tidings.kernel.errors import InvalidOption

from .serving import known

TILL, SHOP = known("till", publish=("orders.>",)), known("shop", publish=("stock.>",))


@pytest.mark.parametrize("of_file", [(TILL,), ()])
@pytest.mark.parametrize("configured", [(SHOP,), ()])
def test_a_file_of_tokens_that_is_gone_changes_nothing(
    of_file: tuple[Any, ...], configured: tuple[Any, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens.json"
    tokens.write(file, of_file)
    settings = Settings(tokens=str(file), clients=configured)
    access = Access(*admitted(settings))
    file.unlink()
    read_anew(settings, access)
    assert not access.anonymous
    assert {*access.clients} == {*of_file, *configured}
    assert ("access is as before" in caplog.text) == (bool(of_file) or not configured)


def test_what_the_file_says_now_holds(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    settings = Settings(tokens=str(file))
    access = Access(*admitted(settings))
    read_anew(settings, access)
    assert access.anonymous  # there never was one
    for of_file in ((TILL,), (SHOP,), ()):
        tokens.write(file, of_file)
        read_anew(settings, access)
        assert (access.anonymous, access.clients) == (False, of_file)


@pytest.mark.parametrize("origin", ["https://bus.example", "*", "http://["])
def test_a_site_is_not_everybodys_unless_that_is_said(origin: str) -> None:
    site: dict[str, Any] = {"origins": (origin,), "tokens": "no-tokens.json"}
    with pytest.raises(InvalidOption, match="everybody could do everything") as raised:
        admitted(Settings(**site))
    assert "[anonymous]" in raised.value.mend
    few = Rights(subscribe=("public.>",))
    assert admitted(Settings(**site, anonymous=few)) == ((), few)
    assert admitted(Settings(**site, clients=(TILL,))) == ((TILL,), None)
    assert admitted(Settings(**site, insecure=True)) == ((), EVERYTHING)
    assert admitted(Settings(**site | {"origins": ("http://localhost:5173",)})) == ((), EVERYTHING)


@pytest.mark.parametrize("where", [{"host": "0.0.0.0"}, {"host": ""}, {"grpc": ("127.0.0.1:1", "192.0.2.1:1")}])
def test_no_token_travels_in_the_clear(where: dict[str, Any]) -> None:
    told = where | {"clients": (TILL,), "tokens": "no-tokens.json"}
    with pytest.raises(InvalidOption, match="tokens could be read on their way") as raised:
        admitted(Settings(**told))
    assert "proxy = true" in raised.value.mend
    for secured in ({"tls": TLS(cert="a.pem", key="a.key")}, {"tls": TLS(proxy=True)}, {"insecure": True}):
        assert admitted(Settings(**told, **secured)) == ((TILL,), None)
    here = {"host": "localhost", "grpc": ("[::1]:1", "unix:/a")}
    assert admitted(Settings(**told | here)) == ((TILL,), None)
