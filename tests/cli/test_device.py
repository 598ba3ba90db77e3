"""``tidings device``: who may come by MQTT."""

from __future__ import annotations

import json
import stat

from .conftest import Shell

RIGHTS = ("--publish", "sensors.m.>", "--subscribe", "commands.m.>", "--subscribe", "time")


def test_adds_lists_and_removes(nowhere: Shell) -> None:
    password = nowhere("device", "add", "meter", *RIGHTS).out.strip()
    file = nowhere.folder / "tidings-data" / "devices.json"
    assert len(password) == 43
    assert password not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = nowhere("device", "ls", "--json").json
    assert told == [{"name": "meter", "publish": ["sensors.m.>"], "subscribe": ["commands.m.>", "time"]}]
    assert "meter" in nowhere("device").out
    assert nowhere("device", "rm", "meter").out == "removed meter\n"
    assert nowhere("device", "--json").json == []


def test_uses_the_folder_of_the_configuration_or_that_of_the_flag(nowhere: Shell) -> None:
    nowhere.write("tidings.toml", '[nats]\ndata = "bus"\n')
    made = nowhere("device", "add", "a", "--publish", "sensors.a", "--json").json
    assert set(made) == {"name", "password", "publish", "subscribe", "folder"}
    assert (nowhere.folder / "bus" / "devices.json").exists()
    nowhere("device", "add", "b", "--publish", "sensors.b", "--data", "other")
    assert [device["name"] for device in json.loads((nowhere.folder / "other" / "devices.json").read_text())] == ["b"]


def test_refuses_what_has_no_meaning(nowhere: Shell) -> None:
    nowhere("device", "add", "a", "--publish", "sensors.a")
    for words, said in (
        (("add", "b"), "'b' may do nothing"),
        (("add", "a", "--publish", "sensors.a"), "there is a device 'a'"),
        (("add", "b", "--publish", ">"), "'>' is no right of a device"),
        (("add", "b", "--subscribe", "commands/#"), "MQTT's '+' and '#' are '*' and '>' here"),
        (("rm", "aa"), "did you mean 'a'?"),
    ):
        refused = nowhere("device", *words, code=2)
        assert said in refused.err, refused.err
