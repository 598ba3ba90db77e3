"""Secrets by reference, so that a configuration file holds none."""

from __future__ import annotations

import os
from pathlib import Path

from tidings.kernel.errors import InvalidOption


def secret(given: str, whose: str) -> str:
    """What ``env:NAME`` (an environment variable) or ``file:/path`` (its first line) stands for; else ``given``.

    ``whose``: what it is for, for the error. Raises ``InvalidOption`` for what is not there or empty.
    """
    kind, _, name = given.partition(":")
    if kind == "env":
        found = os.environ.get(name, "").strip()
        missing = f"the environment has no {name!r}"
    elif kind == "file":
        found, missing = _first_line(name)
    else:
        return given
    if not found:
        raise InvalidOption(f"{whose} has no secret", why=missing, mend="set it, for the user that runs this")
    return found


def _first_line(path: str) -> tuple[str, str]:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{path}: {getattr(error, 'strerror', None) or 'no text'}"
    return (lines[0].strip() if lines else ""), f"{path}: its first line is empty"
