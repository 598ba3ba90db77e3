"""``tidings capabilities``: what a bus can do, as it says itself."""

from __future__ import annotations

import pytest
from tests.servers import server

from tidings.cli.capabilities import EXPLAINED
from tidings.kernel.transport import Capabilities

from .conftest import Shell


def test_of_a_bus(shell: Shell) -> None:
    shell("publish", "a", "1")
    told = shell("capabilities", "--json").json
    assert told["url"] == f"sqlite:///{shell.folder}/shop.db"
    assert set(Capabilities.__struct_fields__) <= told.keys()
    assert (told["durable"], told["ordered"], told["inspect"], told["enlist"]) == ("power", "native", True, False)
    heading, *lines = shell("capabilities", "sqlite:///shop.db?sync=normal").out.splitlines()
    assert heading.split() == ["CAPABILITY", "HERE", "WHAT_IT_IS"]
    cells = {line.split()[0]: line.split()[1] for line in lines}
    assert (cells["durable"], cells["peek"], cells["manage"]) == ("process", "native", "yes")


def test_memory_has_some_too(nowhere: Shell) -> None:
    assert nowhere("capabilities", "memory://", "--json").json["durable"] == "none"


@pytest.mark.slow
def test_of_a_server(nowhere: Shell) -> None:
    told = nowhere("capabilities", server("nats").url, "--json").json
    assert (told["lease"], told["ordered"]) == ("timer", "unavailable")


def test_of_all_that_are_installed(nowhere: Shell) -> None:
    told = nowhere("capabilities", "--json")
    assert {"memory", "sqlite"} <= told.json.keys()
    assert "nats" not in told.json, "it says nothing before it is open"
    assert "nats: known only once open" in told.err
    heading, *lines = nowhere("capabilities").out.splitlines()
    assert heading.split()[:2] == ["CAPABILITY", "KAFKA"]
    assert [line.split()[0] for line in lines][:2] == ["durable", "ordering"]
    assert "none was opened" in nowhere("capabilities").err
    assert list(nowhere.folder.iterdir()) == []


def test_every_capability_is_explained() -> None:
    assert set(EXPLAINED) == set(Capabilities.__struct_fields__) - {"delay_max", "delay_resolution"}


def test_misuse(shell: Shell) -> None:
    assert "there is no bus file" in shell("capabilities", code=3).err
    assert "exclude each other" in shell("capabilities", "memory://", "--url", "memory://", code=2).err
    assert "did you mean 'sqlite'?" in shell("capabilities", "sqlit:///x.db", code=2).err
    assert [path.name for path in shell.folder.iterdir()] == ["shop.py"]
    assert "───" in shell.on_terminal("capabilities", "memory://").out
