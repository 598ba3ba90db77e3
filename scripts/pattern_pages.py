"""Makes docs/patterns: a page for each chapter of the book and the table of all patterns, out of book.toml; and the
reference of ``tidings.patterns``.

``python -m scripts.pattern_pages``. Excerpts are taken from the examples, which tests run.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, convert

from tidings import patterns

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDER = DOCS / "patterns"
EXAMPLES = ROOT / "examples" / "patterns"
MADE = "<!-- made by `make docs-tables` out of book.toml and examples/patterns: change those -->\n"

COLUMNS = "| | here | what holds | example | Camel | Spring |\n|---|---|---|---|---|---|"
TABLE = """\
# All patterns

The 65 patterns of *Enterprise Integration Patterns* (Hohpe and Woolf, 2003) in the order of the book, then those beyond
it. Each name leads to its section, each example is a script that the tests run. Camel and Spring Integration as their
reference documentation describes them; – where it names nothing. What an atomic bus is:
[what holds on which bus](index.md#what-holds-on-which-bus).
"""
REFERENCE = """\
# Python: patterns

Imported from `tidings.patterns`. Which pattern of the book is which, or is no code at all:
[the table](../patterns/table.md).
"""


class Chapter(Struct, frozen=True, forbid_unknown_fields=True):
    """A chapter of the book, and its page here."""

    name: str
    page: str
    intro: str


class Pattern(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of the table and a section of its chapter's page.

    ``semantics``: what is durable, in order, exactly or at least once. ``show``: the names in the example that the page
    shows, all but ``app`` and ``main`` if empty. ``camel``, ``spring``: how those do it, in a few words.
    """

    name: str
    chapter: str
    problem: str
    ours: str
    how: str
    semantics: str
    example: str
    camel: str
    spring: str
    show: Sequence[str] = ()


class Book(Struct, frozen=True, forbid_unknown_fields=True):
    """Chapters and patterns, both in the book's order."""

    chapter: Sequence[Chapter]
    pattern: Sequence[Pattern]

    def of(self, chapter: Chapter) -> Sequence[Pattern]:
        return [pattern for pattern in self.pattern if pattern.chapter == chapter.name]


def book() -> Book:
    return convert(tomllib.loads((FOLDER / "book.toml").read_text()), Book)


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _names(node: ast.stmt) -> Sequence[str]:
    """What a statement of a module defines, or calls: nothing for imports and the docstring."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
            return [name.id for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
            return [name]
    return []


def excerpt(source: str, show: Sequence[str] = ()) -> str:
    """The statements of a script that are worth seeing; raises ``KeyError`` for a name that is not there."""
    lines, found = source.splitlines(), defaultdict[str, list[tuple[int, int]]](list)
    for node in ast.parse(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        for name in _names(node):
            found[name].append((first, node.end_lineno or node.lineno))
    found.default_factory = None
    names = show or [name for name in found if name not in ("app", "main")]
    return "\n".join(_spaced(lines, sorted({place for name in names for place in found[name]})))


def _spaced(lines: Sequence[str], places: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Lines of several places; what stood apart is one blank line apart."""
    before = 0
    for first, last in places:
        if before and first != before + 1:
            yield ""
        yield from lines[first - 1 : last]
        before = last


def section(pattern: Pattern, source: str) -> str:
    return f"""\
## {pattern.name}

*{pattern.problem}*

{pattern.how.strip()}

```python title="examples/patterns/{pattern.example}"
{excerpt(source, pattern.show)}
```

**What holds:** {pattern.semantics}

**Elsewhere:** Camel: {pattern.camel}. Spring Integration: {pattern.spring}. [The whole example]({_example(pattern)}).
"""


def _example(pattern: Pattern) -> str:
    return f"../../examples/patterns/{pattern.example}"


def chapter_page(book: Book, chapter: Chapter) -> str:
    sections = [section(pattern, (EXAMPLES / pattern.example).read_text()) for pattern in book.of(chapter)]
    return f"{MADE}\n# {chapter.name}\n\n{chapter.intro.strip()}\n\n" + "\n".join(sections)


def table(book: Book) -> str:
    lines = [MADE, TABLE]
    for chapter in book.chapter:
        lines += [
            f"## {chapter.name}\n",
            "| | here | what holds | example | Camel | Spring |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(chapter, pattern) for pattern in book.of(chapter)]
        lines.append("")
    return "\n".join(lines)


def _row(chapter: Chapter, pattern: Pattern) -> str:
    name = f"[{pattern.name}]({chapter.page}#{slug(pattern.name)})"
    example = f"[`{pattern.example}`]({_example(pattern)})"
    return f"| {name} | {pattern.ours} | {pattern.semantics} | {example} | {pattern.camel} | {pattern.spring} |"


def reference() -> str:
    """What ``tidings.patterns`` has, by the files it is in."""
    homes = sorted((home.lstrip("_"), home, name) for name, home in patterns._HOME.items())
    return REFERENCE + "".join(f"\n::: tidings.patterns.{home}.{name}\n" for _, home, name in homes)


def pages() -> Mapping[str, str]:
    """File names in docs/, and what they shall say."""
    found = book()
    chapters = {f"patterns/{chapter.page}": chapter_page(found, chapter) for chapter in found.chapter}
    return {"patterns/table.md": table(found), "reference/patterns.md": reference(), **chapters}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
