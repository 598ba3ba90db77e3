"""Signatures of webhooks: against the specifications' own vectors, and the official package, both ways."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from standardwebhooks import Webhook, WebhookVerificationError

from tidings.gateway.refusals import Unverified
from tidings.gateway.secret import secret
from tidings.gateway.signatures import (
    new_secret,
    plain_key,
    sign_github,
    sign_standard,
    sign_stripe,
    standard_key,
    verify_github,
    verify_standard,
    verify_stripe,
)
from tidings.kernel.errors import InvalidOption

NOW = 1_700_000_000.0
BODY = b'{"type":"user.created"}'
SECRET, OTHER = new_secret(), new_secret()
KEYS, STRANGER = [standard_key(SECRET)], [standard_key(OTHER)]

Sign = Callable[[Any], dict[str, str]]

SCHEMES: dict[str, tuple[Sign, Any]] = {
    "standard": (lambda keys: sign_standard(keys, "m-1", NOW, BODY), verify_standard),
    "github": (lambda keys: sign_github(keys[0], BODY), verify_github),
    "stripe": (lambda keys: sign_stripe(keys, NOW, BODY), verify_stripe),
}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
timed = pytest.mark.parametrize("scheme", ["standard", "stripe"])


def test_the_vector_of_standard_webhooks() -> None:
    """Of its own libraries' tests."""
    key = standard_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    told = sign_standard([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert told == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_vector_of_github() -> None:
    """Of its page "Validating webhook deliveries"."""
    key = plain_key("It's a Secret to Everybody")
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert sign_github(key, b"Hello, World!") == {"x-hub-signature-256": f"sha256={digest}"}
    verify_github([key], {"x-hub-signature-256": f"sha256={digest}"}, b"Hello, World!")


def test_stripe_signs_time_and_body() -> None:
    """As its page "Verify manually" has it: HMAC-SHA256 of ``<time>.<body>`` by the secret's text."""
    import hashlib
    import hmac

    key = plain_key("whsec_test_secret")
    told = sign_stripe([key], 12345, b"{}")
    expected = hmac.new(b"whsec_test_secret", b"12345.{}", hashlib.sha256).hexdigest()
    assert told == {"stripe-signature": f"t=12345,v1={expected}"}


@given(body=some.text(max_size=200), id=some.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True))
def test_the_official_package_takes_ours(body: str, id: str) -> None:
    at = datetime.now(UTC).timestamp()
    Webhook(SECRET).verify(body, sign_standard([*STRANGER, *KEYS], id, at, body.encode()), json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, sign_standard(STRANGER, id, at, body.encode()), json_parse=False)


@given(body=some.text(max_size=200), id=some.from_regex(r"[A-Za-z0-9_-]{1,60}", fullmatch=True))
def test_we_take_what_the_official_package_signs(body: str, id: str) -> None:
    made = Webhook(SECRET).sign(id, datetime.fromtimestamp(NOW, UTC).replace(tzinfo=None), body)
    headers = {"webhook-id": id, "webhook-timestamp": str(int(NOW)), "webhook-signature": made}
    verify_standard(KEYS, headers, body.encode(), NOW)
    with pytest.raises(Unverified, match="wrong"):
        verify_standard(KEYS, headers, body.encode() + b" ", NOW)


@each_scheme
def test_secrets_can_be_changed(scheme: str) -> None:
    """Whoever verifies knows the old one and the new one; whoever sends signs with one of them, or both."""
    sign, verify = SCHEMES[scheme]
    for signing in (KEYS, STRANGER, [*STRANGER, *KEYS]):
        verify([*KEYS, *STRANGER], sign(signing), BODY, NOW)
    with pytest.raises(Unverified):
        verify(KEYS, sign(STRANGER), BODY, NOW)


@each_scheme
@pytest.mark.parametrize("change", ["body", "missing", "empty", "cut", "junk", "latin", "version"])
def test_what_was_changed_is_found_out(scheme: str, change: str) -> None:
    sign, verify = SCHEMES[scheme]
    headers, body = sign(KEYS), BODY
    name = next(name for name in headers if "signature" in name)
    value = headers[name]
    changed: dict[str, Any] = {
        "missing": None,
        "empty": "",
        "cut": value[:-1],
        "junk": "v1,;=,,=v1 v1",
        "latin": value + "\xe9\xff",
        "version": value.replace("v1", "v2").replace("sha256", "sha1"),
    }
    verify(KEYS, headers, body, NOW)
    if change == "body":
        body += b"\n"
    else:
        headers = {**headers, name: changed[change]}
    with pytest.raises(Unverified):
        verify(KEYS, headers, body, NOW)


@timed
@pytest.mark.parametrize("apart", [-299.0, 0.0, 300.0])
def test_a_time_within_the_tolerance_is_good(scheme: str, apart: float) -> None:
    sign, verify = SCHEMES[scheme]
    verify(KEYS, sign(KEYS), BODY, NOW + apart)


@timed
@pytest.mark.parametrize("apart", [-301.0, 301.0, 1e9])
def test_what_is_too_old_or_too_new_is_refused(scheme: str, apart: float) -> None:
    sign, verify = SCHEMES[scheme]
    with pytest.raises(Unverified, match="too old"):
        verify(KEYS, sign(KEYS), BODY, NOW + apart)


@pytest.mark.parametrize("stamp", ["", "soon", "-1", "1.5", "1e9", "9" * 13, "٣", "17000000 00"])
def test_a_time_that_is_none_is_refused(stamp: str) -> None:
    headers = {**sign_standard(KEYS, "m", NOW, BODY), "webhook-timestamp": stamp}
    with pytest.raises(Unverified):
        verify_standard(KEYS, headers, BODY, NOW)
    with pytest.raises(Unverified):
        verify_stripe(KEYS, {"stripe-signature": f"t={stamp},v1=00"}, BODY, NOW)


@pytest.mark.parametrize("bad", ["", "whsec_", "whsec_****", "not base64!", "whsec_é"])
def test_a_secret_that_is_none_is_refused_and_not_told(bad: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        standard_key(bad)
    assert bad == "" or bad not in str(refused.value).replace("`whsec_`", "")
    with pytest.raises(InvalidOption):
        plain_key("")


def test_secrets_are_written_with_and_without_prefix_and_padding() -> None:
    key = b"twenty-eight bytes of secret"
    text = base64.b64encode(key).decode()
    assert {standard_key(given) for given in (text, f"whsec_{text}", text.rstrip("="))} == {key}


def test_a_secret_may_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SECRET", f" {SECRET}\n")
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n# of the shop\n")
    assert secret("env:SHOP_SECRET", "x") == secret(f"file:{file}", "x") == secret(SECRET, "x") == SECRET
    file.write_text("\n")
    for missing in ("env:NOBODY_SET_THIS", f"file:{file}", f"file:{tmp_path / 'none'}", f"file:{tmp_path}"):
        with pytest.raises(InvalidOption, match="webhook 'x' has no secret"):
            secret(missing, "webhook 'x'")
