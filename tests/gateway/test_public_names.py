"""The public names of ``tidings.gateway``: which there are, and what each of them needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tidings import gateway

FACE = [
    *("Access", "Client", "Gateway", "Limits", "Principal", "Rights", "asgi", "hashed", "new_token"),
    *("WebhookIn", "WebhookOut", "new_secret", "webhooks"),
]
OF_SERVERS = {"starlette", "uvicorn", "httptools", "websockets", "uvloop", "grpc", "httpcore", "prometheus_client"}
PLAIN = "Access, Client, Gateway, Limits, Principal, Rights, WebhookOut, hashed, new_secret, new_token, webhooks"


def python(*lines: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_are_exactly_these() -> None:
    assert sorted(gateway.__all__) == sorted(FACE)


@pytest.mark.parametrize("name", FACE)
def test_each_name_is_documented(name: str) -> None:
    thing = getattr(gateway, name)
    assert not isinstance(thing, ModuleType)
    assert thing.__module__.startswith("tidings.gateway.")
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}(")  # what a Struct without a docstring says


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match=r"tidings\.gateway has no 'Gatewy'"):
        _ = gateway.Gatewy


def test_a_function_is_not_hidden_by_the_module_it_stands_in() -> None:
    code = "import tidings.gateway.asgi", "from tidings.gateway import asgi", "print(asgi.__qualname__)"
    assert python(*code).strip() == "asgi"


def test_nothing_of_a_server_is_loaded_before_it_is_wanted() -> None:
    for wanted in ("import tidings", "import tidings.gateway", f"from tidings.gateway import {PLAIN}"):
        loaded = python("import sys", wanted, "print(*sys.modules)").split()
        assert OF_SERVERS.isdisjoint(name.partition(".")[0] for name in loaded), wanted


@pytest.mark.parametrize("name", ["asgi", "WebhookIn"])
def test_a_missing_package_is_said(name: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(f"import sys\nsys.modules['starlette'] = None\nfrom tidings.gateway import {PLAIN}, {name}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert f"MissingExtra: TDG-E007: {name} needs a package that is not installed" in done.stderr
    assert f"where: {script}:3" in done.stderr
    assert "mend:  pip install 'tidings[serve]'" in done.stderr
