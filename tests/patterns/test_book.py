"""The book's 65 patterns: each in the table, each with an example, each example run; nothing told that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.pattern_pages import DOCS, EXAMPLES, Pattern, book, excerpt, pages

from tidings import patterns

BOOK = {
    "Integration Styles": ["File Transfer", "Shared Database", "Remote Procedure Invocation", "Messaging"],
    "Messaging Systems": [
        *("Message Channel", "Message", "Pipes and Filters", "Message Router", "Message Translator"),
        "Message Endpoint",
    ],
    "Messaging Channels": [
        *("Point-to-Point Channel", "Publish-Subscribe Channel", "Datatype Channel", "Invalid Message Channel"),
        *("Dead Letter Channel", "Guaranteed Delivery", "Channel Adapter", "Messaging Bridge", "Message Bus"),
    ],
    "Message Construction": [
        *("Command Message", "Document Message", "Event Message", "Request-Reply", "Return Address"),
        *("Correlation Identifier", "Message Sequence", "Message Expiration", "Format Indicator"),
    ],
    "Message Routing": [
        *("Content-Based Router", "Message Filter", "Dynamic Router", "Recipient List", "Splitter", "Aggregator"),
        *("Resequencer", "Composed Message Processor", "Scatter-Gather", "Routing Slip", "Process Manager"),
        "Message Broker",
    ],
    "Message Transformation": [
        *("Envelope Wrapper", "Content Enricher", "Content Filter", "Claim Check", "Normalizer"),
        "Canonical Data Model",
    ],
    "Messaging Endpoints": [
        *("Messaging Gateway", "Messaging Mapper", "Transactional Client", "Polling Consumer", "Event-Driven Consumer"),
        *("Competing Consumers", "Message Dispatcher", "Selective Consumer", "Durable Subscriber"),
        *("Idempotent Receiver", "Service Activator"),
    ],
    "System Management": [
        *("Control Bus", "Detour", "Wire Tap", "Message History", "Message Store", "Smart Proxy", "Test Message"),
        "Channel Purger",
    ],
}
BEYOND = "Beyond the book"
ROWS = book().pattern
PAGES = ["patterns/table.md", "reference/patterns.md", *(f"patterns/{chapter.page}" for chapter in book().chapter)]
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_the_table_has_the_book_s_65() -> None:
    told = {name: [row.name for row in ROWS if row.chapter == name] for name in BOOK}
    assert told == BOOK
    assert sum(map(len, told.values())) == 65
    assert [chapter.name for chapter in book().chapter] == [*BOOK, BEYOND]
    assert {row.chapter for row in ROWS} == {*BOOK, BEYOND}


@each_row
def test_a_row_has_its_example(row: Pattern) -> None:
    assert row.example in SCRIPTS
    if row.chapter != BEYOND:
        assert row.example == re.sub(r"\W", "_", row.name.lower()) + ".py"
    assert excerpt((EXAMPLES / row.example).read_text(), row.show)


@each_row
def test_a_row_is_told_in_full(row: Pattern) -> None:
    silent = [name for name in row.__struct_fields__ if name != "show" and not getattr(row, name).strip()]
    assert silent == []
    assert set(re.findall(r"patterns\.(\w+)", row.ours)) <= set(patterns.__all__)


def test_no_example_stands_alone() -> None:
    assert sorted({row.example for row in ROWS}) == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_example(script: str, tmp_path: Path) -> None:
    """It ends with asserts of its own."""
    command = [sys.executable, "-W", "error", EXAMPLES / script]
    env = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, "what was left open"
    assert "assert " in (EXAMPLES / script).read_text()


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_fresh(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], "run: make docs-tables"


def test_what_an_excerpt_shows() -> None:
    source = """\
import x

app = x.App()
a, b = 1, 2
app.tell(a)


@app.on(a)
async def f() -> None: ...


async def main() -> None: ...
"""
    assert excerpt(source) == "a, b = 1, 2\napp.tell(a)\n\n@app.on(a)\nasync def f() -> None: ..."
    assert excerpt(source, ["main", "b"]) == "a, b = 1, 2\n\nasync def main() -> None: ..."
    assert excerpt(source, ["tell"]) == "app.tell(a)"
    with pytest.raises(KeyError, match="away"):
        excerpt(source, ["away"])
