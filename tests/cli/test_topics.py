"""``tidings topics``: what is retained, and who reads it."""

from __future__ import annotations

from typing import Any

from .conftest import Shell


def test_list(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    shell("publish", "stock.low", "--lines", input="1\n2\n3\n")
    orders, stock = shell("topics", "--json").json
    assert orders.pop("newest").endswith("Z")
    assert orders == {"name": "orders.placed", "messages": 1, "readers": ["shop.bill"], "rate": None}
    assert (stock["name"], stock["messages"], stock["readers"]) == ("stock.low", 3, [])
    heading, *lines = shell("topics").out.splitlines()
    assert heading.split() == ["TOPIC", "MESSAGES", "NEWEST", "READERS"]
    assert [line.split()[0] for line in lines] == ["orders.placed", "stock.low"]
    assert lines[0].endswith("ago  shop.bill")
    assert lines[1].split()[1] == "3"
    assert [topic["name"] for topic in shell("topics", "stock.*", "--json").json] == ["stock.low"]


def test_reserved_ones_on_demand(shell: Shell, letters: list[dict[str, Any]]) -> None:
    names = [topic["name"] for topic in shell("topics", "--json").json]
    assert names == ["orders.placed"]
    everything = {topic["name"]: topic for topic in shell("topics", "--all", "--json").json}
    assert everything["_dead.shop.bill"]["messages"] == 2
    assert [topic["name"] for topic in shell("topics", "*.shop.bill", "--all", "--json").json] == ["_dead.shop.bill"]
    assert [topic["name"] for topic in shell("topics", "_dead.>", "--json").json] == ["_dead.shop.bill"]
    shell("dead", "replay", "--all")
    private = {topic["name"]: topic for topic in shell("topics", "--all", "--json").json}["_group.shop.bill"]
    assert (private["messages"], private["readers"]) == (2, ["shop.bill"])


def test_rates(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    (topic,) = shell("topics", "--rates", "--interval", "100ms", "--json").json
    assert topic["rate"] == 0
    heading, line = shell("topics", "--rates", "--interval=100ms").out.splitlines()
    assert heading.split()[2] == "IN/S"
    assert line.split()[2] == "0"


def test_nothing_there(shell: Shell, known: None) -> None:
    nothing = shell("topics")
    assert (nothing.out, nothing.err) == ("", "nothing is retained of >\n")
    assert shell("topics", "orders.placed", "--json").json == []  # a group reads it
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    assert "did you mean 'orders.placed'?" in shell("topics", "orders.plced", code=2).err


def test_on_a_terminal(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    shown = shell.on_terminal("topics", "--all").out
    assert "───" in shown
    assert "shop.bill" in shown


def test_misuse(shell: Shell, known: None) -> None:
    cases = [
        ("topics a..b", "TDG-E001"),
        ("topics --interval soon", "--interval cannot be 'soon'"),
        ("topics --interval 1ms", "at least 100ms"),
        ("topics --al", "did you mean --all?"),
    ]
    for (line, said), (code, out, err, _) in zip(cases, shell.all([c[0].split() for c in cases]), strict=True):
        assert (code, out, said in err) == (2, "", True), (line, err)
