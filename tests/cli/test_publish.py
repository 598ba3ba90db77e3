"""``tidings publish``: what is stored, how it is told, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Running, Shell


def stored(shell: Shell, pattern: str = ">", count: int = 1) -> list[dict[str, Any]]:
    lines = shell("tail", pattern, "--since", "first", "--limit", str(count), "--json").out.splitlines()
    return [json.loads(line) for line in lines]


def test_everything_that_can_be_said(nowhere: Shell) -> None:
    words = ["--key", "k", "--header", "a=b", "--header", "c=d=e", "--priority", "3", "--expires", "1h"]
    said = nowhere("publish", "orders.placed", '{"id": 1.50, "n": "é"}', *words, "--url", "sqlite:///a.db")
    assert f"to orders.placed on sqlite:///{nowhere.folder}/a.db" in said.out
    nowhere.env["TIDINGS_URL"] = "sqlite:///a.db"
    (message,) = stored(nowhere)
    assert message["id"] in said.out
    assert message["partitionkey"] == "k"
    assert message["headers"] == {"a": "b", "c": "d=e"}
    assert message["tdgpriority"] == 3
    assert message["datacontenttype"] == "application/json"
    assert message["data"]["n"] == "é"
    assert message["expirytime"] > message["time"]


def test_json_output(shell: Shell) -> None:
    told = shell("publish", "a.b", "1", "--json").json
    assert told == {"published": 1, "tdgtopic": "a.b", "id": told["id"], "url": f"sqlite:///{shell.folder}/shop.db"}


@pytest.mark.parametrize(
    ("input", "content_type", "data"),
    [
        ('{"a": [1, 2]}\n', "application/json", {"a": [1, 2]}),
        ("12345678901234567890123\n", "application/json", 12345678901234567890123),
        ("plain text\n", "text/plain", "plain text"),
        ("two\nlines", "text/plain", "two\nlines"),
        (b"\xff\x00", "application/octet-stream", "/wA="),
        ("", "text/plain", None),
    ],
    ids=["json", "big number", "text", "lines", "bytes", "empty"],
)
def test_standard_input(shell: Shell, input: str | bytes, content_type: str, data: object) -> None:
    shell("publish", "a", input=input)
    (message,) = stored(shell)
    assert message["datacontenttype"] == content_type
    assert message.get("data", message.get("data_base64")) == data


def test_dash_and_file(shell: Shell) -> None:
    shell("publish", "a", "-", input="[1]")
    shell.write("body.json", '{"from": "file"}\n')
    shell("publish", "a", "--file", "body.json")
    shell("publish", "a", "--file", "-", "--key", "k", input="3")
    shell("publish", "a", "--text", "-", input="4")
    assert [message["data"] for message in stored(shell, count=4)] == [[1], {"from": "file"}, 3, "4"]


@pytest.mark.parametrize("data", ["-5", "true", '"quoted"'])
def test_json_that_is_no_object(shell: Shell, data: str) -> None:
    shell("publish", "a", data)
    assert stored(shell)[0]["data"] == json.loads(data)


def test_broken_json_is_refused_and_nothing_is_created(shell: Shell) -> None:
    broken = ['{"a": NaN}', "NaN", "-Infinity", "{'a': 1}", '{"a": 1,}', '["']
    for code, out, err, files in shell.all([["publish", "a", "--", data] for data in broken]):
        assert (code, out, files) == (2, "", ["shop.py"])
        assert "TDG-E008" in err
        assert "--text" in err


def test_broken_json_may_be_text(shell: Shell) -> None:
    shell("publish", "a", "{not json", "--text")
    assert stored(shell)[0]["data"] == "{not json"


def test_lines(shell: Shell) -> None:
    text = "\n".join([*(json.dumps({"n": n}) for n in range(2_500)), "", "last, as text"])
    told = shell("publish", "a", "--lines", "--json", input=text).json
    assert (told["published"], told["tdgtopic"]) == (2_501, "a")
    messages = stored(shell, count=2_501)
    assert [message["data"] for message in messages[:-1]] == [{"n": n} for n in range(2_500)]
    assert messages[-1]["data"] == "last, as text"
    assert len({message["id"] for message in messages}) == 2_501


def test_lines_of_a_file_on_a_terminal(shell: Shell) -> None:
    shell.write("many.txt", "\n".join(map(str, range(1_500))))
    shown = shell.on_terminal("publish", "a", "--lines", "--file", "many.txt")
    assert shown.code == 0
    assert "published 1,500 messages to a on sqlite:" in shown.out


def test_a_bad_line_says_which_and_what_came_before(shell: Shell) -> None:
    refused = shell("publish", "a", "--lines", input='1\n\n{"broken"\n4', code=2)
    assert "line 3: the data is no valid JSON" in refused.err
    assert "1 messages were published before that" in refused.err
    assert [message["data"] for message in stored(shell)] == [1]


def test_to_the_bus_of_an_app(shell: Shell) -> None:
    del shell.env["TIDINGS_URL"]
    told = shell("publish", "shop:app", "orders.placed", '{"id": "A7", "total": 50}', "--json")
    assert told.json["url"] == f"sqlite:///{shell.folder}/shop.db"


def test_a_handler_gets_it(shell: Shell, shop: Running) -> None:
    shell("publish", "orders.placed", '{"id": "A7", "total": 5}')
    shop.until("billed A7")


def test_delay(shell: Shell, shop: Running) -> None:
    shell("publish", "orders.placed", '{"id": "later", "total": 5}', "--delay", "1h")
    shell("publish", "orders.placed", '{"id": "sooner", "total": 5}', "--delay", "50ms")
    shop.until("billed sooner")
    assert not any("later" in line for line in shop.lines)


def test_the_file_of_another_folder(nowhere: Shell) -> None:
    said = nowhere("publish", "a", "1", "--url", "sqlite:///shop.db").err
    assert f"{nowhere.folder}/shop.db did not exist before" in said
    assert "did not exist" not in nowhere("publish", "a", "1", "--url", "sqlite:///shop.db").err
