"""Prints docs/reference/cli.md, from the commands themselves: ``python -m scripts.cli_reference``."""

from __future__ import annotations

import re
import sys

import tidings.cli

HEAD = """# The command line

Made from the commands by `make docs-tables`; a test fails when it is stale. `tidings VERB --help` says the same.

"""
CODES = """
## Exit codes

| | |
|---|---|
"""


def page() -> str:
    """The whole page."""
    told = tidings.cli._parser(overview=False).generate_docs(output_format="markdown", usage_name="tidings")
    told = re.sub(r"^(tidings [a-z ]+) -m \S+", r"\1", told, flags=re.MULTILINE)  # how this process was started
    body = re.sub(r"\A# .*\n", "", told).strip().replace("```console", "```text")  # usage is nothing to type
    codes = re.findall(r"^(\d+) +(.*)$", tidings.cli.__doc__ or "", re.MULTILINE)
    return HEAD + body + "\n" + CODES + "".join(f"| {code} | {meaning} |\n" for code, meaning in codes)


if __name__ == "__main__":
    sys.stdout.write(page())
