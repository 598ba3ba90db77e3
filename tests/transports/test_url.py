"""A broker's URL: read whole, and refused with what to write instead; a password is never shown."""

from __future__ import annotations

import pytest
from msgspec import Struct

from tidings.kernel.errors import Duration, InvalidOption, InvalidURL
from tidings.kernel.message import seconds
from tidings.transports._url import Location, fill, locate, shown
from tidings.urls import options_for


class Options(Struct, frozen=True, kw_only=True):
    servers: tuple[str, ...]
    lease: Duration = "30s"
    window: int = 100
    tls: bool = False

    def __post_init__(self) -> None:
        if seconds(self.lease, "lease") == 0:
            raise InvalidOption("lease cannot be 0", mend='a duration like "30s"')


def test_every_part() -> None:
    found = locate("amqps://shop:p%40ss@a.example:5671,b,[::1]:9/v%2Fhost?lease=1s&tls=true", 5672)
    hosts = (("a.example", 5671), ("b", 5672), ("::1", 9))
    assert found == Location("amqps", hosts, "shop", "p@ss", "v/host", {"lease": "1s", "tls": "true"})


def test_as_little_as_possible() -> None:
    assert locate("nats://", 4222) == Location("nats", (), "", "", "", {})


@pytest.mark.parametrize("url", ["nats://host:port", "nats://host:0", "nats://host:70000", "nats://:4222", "nats://@h"])
def test_what_is_no_host(url: str) -> None:
    with pytest.raises(InvalidURL) as refused:
        locate(url, 4222)
    assert refused.value.mend


def test_options_are_converted() -> None:
    url = "x://h?lease=250ms&window=7&tls=true"
    options = fill(Options, url, locate(url, 1).query, servers=("h",))
    assert options == Options(servers=("h",), lease="250ms", window=7, tls=True)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"leese": "1s"}, "did you mean 'lease'?"),
        ({"servers": "other"}, "has no option 'servers'"),
        ({"window": "many"}, "window"),
        ({"lease": "0s"}, "lease cannot be 0"),
        ({"lease": "soon"}, "lease cannot be 'soon'"),
    ],
)
def test_bad_options_are_named(query: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidURL) as refused:
        fill(Options, "x://me:secret@h", query, servers=("h",))
    assert says in f"{refused.value.what} {refused.value.mend}"
    assert "secret" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    assert shown("amqp://shop:secret@h:1/v?a=b@c") == "amqp://shop@h:1/v?a=b@c"
    assert shown("amqp://h/v") == "amqp://h/v"
    assert shown("nats+tls://token@h,i:1") == "nats+tls://***@h,i:1"
    assert shown("nats://shop:secret@h") == "nats://shop@h"
    assert shown("redis://h?sentinel_password=secret&db=1") == "redis://h?sentinel_password=***&db=1"


@pytest.mark.parametrize("mark", "/?#[")
def test_one_that_is_not_encoded_is_not_shown_either(mark: str) -> None:
    with pytest.raises(InvalidURL, match="percent-encode") as refused:
        locate(f"kafka://shop:sec{mark}ret@h:1", 9092)
    assert "sec" not in str(refused.value)


def test_half_an_address() -> None:
    with pytest.raises(InvalidURL, match=r"an IPv6 address is \[::1\]"):
        locate("nats://[::1", 4222)


@pytest.mark.parametrize("scheme", ["postgresql", "nats", "amqp", "redis", "kafka"])
@pytest.mark.parametrize("login", ["shop:secret", "secret"])
def test_options_do_not_show_one_either(scheme: str, login: str) -> None:
    if login == "shop:secret" or scheme == "nats":  # where a user alone is a token
        options = options_for(
            f"{scheme}://{login}@localhost/1" if scheme == "redis" else f"{scheme}://{login}@localhost"
        )
        assert "secret" not in repr(options)
        assert "localhost" in repr(options)
