"""``tidings groups``: list, rename, drop."""

from __future__ import annotations

from .conftest import Running, Shell

GROUPS = ["count", "prices.quote", "shop.bill"]


def test_list(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    listed = {group["name"]: group for group in shell("groups", "--json").json}
    assert sorted(listed) == GROUPS
    bill = listed["shop.bill"]
    oldest = bill.pop("oldest")
    assert oldest.endswith("Z")
    assert bill == {
        "name": "shop.bill",
        "app": "shop",
        "pattern": "orders.placed",
        "lag": 1,
        "in_flight": 0,
        "parked": 0,
        "dead": 0,
        "members": 0,
    }
    heading, *lines = shell("groups").out.splitlines()
    assert heading.split() == ["GROUP", "APP", "PATTERN", "LAG", "IN_FLIGHT", "PARKED", "DEAD", "OLDEST", "MEMBERS"]
    assert [line.split()[0] for line in lines] == GROUPS
    assert {line.index("shop  ") for line in lines} == {heading.index("APP")}
    assert [group["name"] for group in shell("groups", "shop.>", "--json").json] == ["shop.bill"]


def test_members(shell: Shell, shop: Running) -> None:
    assert {group["members"] for group in shell("groups", "--json").json} == {1}
    assert "members at work" in shell("groups", "drop", "shop.bill", "--yes", code=3).err
    assert "members at work" in shell("groups", "rename", "shop.bill", "shop.x", code=3).err


def test_on_a_terminal(shell: Shell, known: None) -> None:
    shown = shell.on_terminal("groups").out
    assert "───" in shown
    assert "\x1b[" in shown
    assert "shop.bill" in shown


def test_none_yet(shell: Shell) -> None:
    shell("publish", "a", "1")
    nothing = shell("groups")
    assert (nothing.out, "no groups yet" in nothing.err) == ("", True)
    assert shell("groups", "--json").json == []


def test_rename_keeps_the_backlog(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "kept", "total": 1}')
    shell.write("shop.py", (shell.folder / "shop.py").read_text().replace("def bill(", "def invoice("))
    assert shell("groups", "rename", "shop.bill", "shop.invoice").out == "renamed shop.bill to shop.invoice\n"
    running = shell.start("run", "shop")
    running.until("billed kept")
    assert running.end() == 0


def test_drop(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    refused = shell("groups", "drop", "shop.bill", code=2)
    assert "--yes" in refused.err
    assert shell("groups", "drop", "shop.bill", "--dry-run").out.startswith("would drop shop.bill; 1 messages")
    kept = shell.on_terminal("groups", "drop", "shop.bill", keys="n\n", after="[y/N]")
    assert "kept shop.bill" in kept.out
    assert len(shell("groups", "--json").json) == 3
    dropped = shell.on_terminal("groups", "drop", "shop.bill", keys="y\n", after="[y/N]")
    assert "dropped shop.bill" in dropped.out
    assert shell("groups", "drop", "count", "-y", "--json").json == {"group": "count", "waiting": 0, "dropped": True}
    assert [group["name"] for group in shell("groups", "--json").json] == ["prices.quote"]


def test_nearest_group(shell: Shell, known: None) -> None:
    for words in (["groups", "shop.bil"], ["groups", "drop", "shop.bil", "-y"], ["groups", "rename", "shop.bil", "x"]):
        assert "did you mean 'shop.bill'?" in shell(*words, code=2).err
    assert "shop.>" in shell("groups", "shop", code=2).err
