"""``tidings peek``, and how messages are chosen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tidings import App, Message
from tidings.cli._filters import anywhere, contains, filters
from tidings.cli._scan import Scan
from tidings.kernel.errors import InvalidOption
from tidings.kernel.transport import Inspectable

from .conftest import Shell


def numbers(count: int) -> str:
    return "\n".join(f'{{"n": {n}}}' for n in range(count))


def test_newest_or_oldest(shell: Shell) -> None:
    shell("publish", "a.b", "--lines", input=numbers(2_500))
    cases: list[tuple[list[str], list[int], int]] = [
        (["--limit", "3"], [2_497, 2_498, 2_499], 3),
        (["--limit", "2", "--oldest"], [0, 1], 2),
        ([], list(range(2_490, 2_500)), 10),
        (["--where", "n<3"], [0, 1, 2], 2_500),
        (["--where", "n>=17", "--limit", "1", "--oldest"], [17], 18),
        (["--where", "n>=17", "--where", "n<20", "--limit", "2"], [18, 19], 2_500),
    ]
    results = shell.all([["peek", "a.*", *words, "--json"] for words, *_ in cases])
    for (words, expected, scanned), (_, out, err, _) in zip(cases, results, strict=True):
        assert [event["data"]["n"] for event in json.loads(out)] == expected, words
        assert err == f"scanned {scanned:,} of 2,500\n", words


def test_nobody_is_disturbed(shell: Shell, known: None) -> None:
    shell("publish", "orders.placed", '{"id": "1", "total": 1}')
    before = shell("groups", "--json").json
    shell("peek", "orders.placed")
    assert shell("groups", "--json").json == before
    running = shell.start("run", "shop")
    running.until("billed 1")
    assert running.end() == 0


def test_a_line_in_a_pipe(shell: Shell) -> None:
    id = shell("publish", "a.b", "\x1b[31mred\nnext", "--key", "k\x07", "--json").json["id"]
    line = shell("peek", "a.b").out
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"
    assert re.fullmatch(rf"{time}  a\.b  k\\x07  {id}  \\x1b\[31mred\\nnext\n", line)


def test_pretty_on_a_terminal(shell: Shell) -> None:
    shell("publish", "a.b", '{"n": 1}', "--header", "from=test\x1b[1m")
    shell("publish", "a.b", '{"long": "' + "x" * 200 + '"}')
    shown = re.sub(r"\x1b\[\d+m", "", shell.on_terminal("peek", "a.b").out)
    assert '  from: test\\x1b[1m\n  {"n":1}\n' in shown
    assert '  {\n    "long": "xxx' in shown


def test_filters(shell: Shell) -> None:
    shell("publish", "a", "1", "--key", "x", "--header", "h=1")
    shell("publish", "a", "2", "--key", "y", "--header", "h=2")
    cases: list[tuple[list[str], list[int]]] = [
        (["--key", "x"], [1]),
        (["--header", "h=2"], [2]),
        (["--header", "h"], [1, 2]),
        (["--header", "h", "--key", "y"], [2]),
        (["--since", "-1h"], [1, 2]),
        (["--since", "2100-01-01"], []),
    ]
    results = shell.all([["peek", "a", *words, "--json"] for words, _ in cases])
    for (words, expected), (_, out, _, _) in zip(cases, results, strict=True):
        assert [event["data"] for event in json.loads(out)] == expected, words
    assert "none is what the options say" in shell("peek", "a", "--key", "z").err


@pytest.mark.parametrize(
    ("condition", "body", "said"),
    [
        ("total>=100", b'{"total": 100}', True),
        ("total>100", b'{"total": 100}', False),
        ("total<1e3", b'{"total": 100}', True),
        ("total=100", b'{"total": 100.0}', True),
        ("total>5", b'{"total": "9"}', True),  # as texts: what is no number in the body is not compared as one
        ("total>5", b'{"total": true}', False),
        ("paid=true", b'{"paid": true}', True),
        ("paid=1", b'{"paid": true}', False),
        ("paid!=true", b'{"paid": null}', True),
        ("id=17", b'{"id": "17"}', True),
        ('id="17"', b'{"id": "17"}', True),
        ('id="17"', b'{"id": 17}', False),
        ("customer.name=Ann Lee", b'{"customer": {"name": "Ann Lee"}}', True),
        ("customer.name~Lee", b'{"customer": {"name": "Ann Lee"}}', True),
        ("customer~Lee", b'{"customer": {"name": "Ann Lee"}}', True),
        ("items.1.n=3", b'{"items": [{"n": 2}, {"n": 3}]}', True),
        ("items.2.n=3", b'{"items": [{"n": 2}, {"n": 3}]}', False),
        ("absent!=3", b"{}", False),
        ("at>2025-03-01", b'{"at": "2025-04-01T00:00"}', True),
        ("a = b=c", b'{"a": "b=c"}', True),
        ("n=1", b"no json", False),
        ("n=1", b"\xff", False),
        ("n=1", b"[1]", False),
    ],
)
def test_where(condition: str, body: bytes, said: bool) -> None:
    (test,) = filters(where=[condition])
    assert test(Message("a", body=body)) is said


@pytest.mark.parametrize("condition", ["total", "=3", ""])
def test_where_that_says_nothing(condition: str) -> None:
    with pytest.raises(InvalidOption, match="--where cannot be"):
        filters(where=[condition])


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (contains("é"), True),
        (contains('"q"'), True),
        (contains("ID"), False),
        (anywhere("ID"), True),
        (anywhere("I"), False),
        (anywhere("K"), True),
        (anywhere("V"), True),
        (anywhere("CO"), True),
        (anywhere("CA"), True),
        (anywhere("é"), True),
    ],
)
def test_texts(test: Callable[[Message[Any]], bool], found: bool) -> None:
    about: dict[str, Any] = {"id": "ID", "key": "K", "headers": (("N", "V"),)}
    about |= {"correlation_id": "CO", "causation_id": "CA"}
    assert test(Message("a", body=b'{"t": "caf\\u00e9 \\"q\\""}', **about)) is found


@pytest.mark.parametrize("limit", [1, 10, 999, 1_000, 1_700, 5_000])
async def test_the_newest_are_found_without_reading_all(limit: int) -> None:
    app = App("t", "memory://")
    async with app.connect():
        await app.publish_many(Message("a" if n % 3 else "b", body=b"%d" % n) for n in range(7_000))
        bus = app.bus()
        assert isinstance(bus, Inspectable)
        expected = [n for n in range(7_000) if n % 3][-limit:]
        assert [int(stored.message.body) for stored in await Scan(bus, "a").tip(limit)] == expected


def test_unknown_topic(shell: Shell) -> None:
    shell("publish", "orders.placed", "1")
    assert "did you mean 'orders.placed'?" in shell("peek", "orders.plced", code=2).err
    nothing = shell("peek", "nix.>")
    assert (nothing.out, nothing.err) == ("", "scanned 0 of 0\n")


def test_misuse(shell: Shell) -> None:
    shell("publish", "a", "1")
    cases = [
        ("peek", "TOPIC requires an argument"),
        ("peek a b", "too many arguments"),
        ("peek a --limit 0", "--limit cannot be 0"),
        ("peek a --since x", "--since cannot be 'x'"),
        ("peek a --where total", "total>=100"),
        ("peek a --header =x", "NAME=VALUE"),
        ("peek a --wher x=1", "did you mean --where?"),
        ("peek #", "TDG-E001"),
    ]
    for (line, said), (code, out, err, _) in zip(cases, shell.all([c[0].split() for c in cases]), strict=True):
        assert (code, out, said in err) == (2, "", True), (line, err)
