"""``tidings demo``."""

from __future__ import annotations

import importlib
from typing import Annotated

from cyclopts import Parameter

from tidings.kernel.errors import MissingExtra
from tidings.kernel.message import seconds

from ._options import Url, flag


def demo(
    *,
    duration: Annotated[str | None, Parameter(name="--for", help="End after this long, such as 10s.")] = None,
    plain: Annotated[bool, flag("Lines instead of a picture.")] = False,
    url: Url = None,
) -> None:
    """Watch a small fleet on one file survive what is done to it."""
    length = None if duration is None else seconds(duration, "--for")
    try:
        importlib.import_module("tidings.demo").main(url, length, plain)
    except ImportError as error:
        if error.name != "psutil":
            raise
        why, mend = "it looks at the processes it starts with psutil", "pip install 'tidings[demo]'"
        missing = MissingExtra("the demo needs a package that is not installed", why=why, mend=mend)
        missing.where = ""
        raise missing from None
