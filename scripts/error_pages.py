"""Prints docs/reference/errors.md: every error, from the text that ``tidings explain`` prints.

``python -m scripts.error_pages > docs/reference/errors.md``
"""

from __future__ import annotations

from tidings.cli._pages import pages

HEAD = """\
# Errors

Every error has a code that never changes its meaning, says what happened, where (a line of your code), why, and how to
mend it. `tidings explain CODE` prints its page; so does this document, which `scripts/error_pages.py` makes from the
same text: a test fails when it is stale, another provokes each error and compares what it prints with its page.
"""


def document() -> str:
    """The whole document."""
    found = pages().values()
    table = ["| | | |", "|---|---|---|"]
    for page in found:
        code = page.kind.code
        table.append(f"| [{code}](#{code.lower()}) | `{page.kind.__name__}` | {page.meaning} |")
    return "\n".join([HEAD, *table, "", *(page.markdown for page in found)]).rstrip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
