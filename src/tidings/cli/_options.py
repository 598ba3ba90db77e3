"""What several verbs share: options, and how their values are read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption
from tidings.router import start_time


def flag(help: str, *names: str) -> Parameter:
    """An option without a value."""
    return Parameter(name=names or None, help=help, show_default=False)


Url = Annotated[
    str | None,
    Parameter(
        name="--url", help="The bus. Default: TIDINGS_URL, then [tool.tidings] url of the nearest pyproject.toml."
    ),
]
Target = Annotated[str, Parameter(name="APP", help="module:app, module, or path/to/file.py:app")]
Json = Annotated[bool, flag("Structured output; errors too.", "--json")]
Yes = Annotated[bool, flag("Do not ask.", "--yes", "-y")]
DryRun = Annotated[bool, flag("Only say what would be done.", "--dry-run")]


def since_time(text: str, option: str = "--since") -> float:
    """Unix seconds of ``first``, ``-1h`` or an ISO date and time (without a zone: local). Raises ``InvalidOption``."""
    if text == "first" or text.startswith("-"):
        return start_time(text)
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        mend = "'first', '-1h', or a date and time such as 2025-03-01T12:00"
        raise InvalidOption(f"{option} cannot be {text!r}", mend=mend) from None
