"""The reference of errors: a page for each class, in ``errors.md``; ``explain`` and the documentation print them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tidings.gateway import refusals
from tidings.kernel import errors
from tidings.kernel.errors import BusError, DeliveryError, NotFound, RequestError, TidingsError, UsageError, nearest

from . import exit_code

FAULTS: tuple[tuple[type[TidingsError], str], ...] = (
    (UsageError, "the caller's"),
    (BusError, "the bus's"),
    (RequestError, "the answerer's"),
    (DeliveryError, "the message's"),
    (refusals.Refused, "the client's"),
    (errors.HandlerTimeout, "the handler's"),
    (errors.HandlerCrashed, "the handler's"),
    (TidingsError, "nobody's in particular"),
)
OF_HANDLING = (DeliveryError, errors.HandlerTimeout, errors.HandlerCrashed)  # no command ends with one


class Page(NamedTuple):
    """What there is to say about a class of errors."""

    kind: type[TidingsError]
    text: str

    @property
    def meaning(self) -> str:
        """The first line of its docstring."""
        return re.sub("`+", "`", (self.kind.__doc__ or "").strip().partition("\n")[0])

    @property
    def fault(self) -> str:
        """Whose fault it is, and where one meets it."""
        whose = next(told for kind, told in FAULTS if issubclass(self.kind, kind))
        if issubclass(self.kind, OF_HANDLING):
            return f"{whose}; told by its dead letter and the log"
        if issubclass(self.kind, refusals.Refused):
            return f"{whose}; told by the answer of the server"
        return f"{whose}; exit code {exit_code(self.kind)}"

    @property
    def markdown(self) -> str:
        """The page, beginning with a heading of the second level."""
        return f"## {self.kind.code}\n\n**{self.kind.__name__}** – whose fault: {self.fault}.\n\n{self.text}\n"


@cache
def pages() -> dict[str, Page]:
    """Every page by its code, in order."""
    _, *parts = re.split(r"^# (TDG-E\d{3})\n", Path(__file__).with_name("errors.md").read_text("utf-8"), flags=re.M)
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    named = (vars(errors) | vars(refusals)).values()
    kinds = [kind for kind in named if isinstance(kind, type) and issubclass(kind, TidingsError)]
    return {kind.code: Page(kind, texts[kind.code].strip()) for kind in sorted(kinds, key=lambda kind: kind.code)}


def page_of(name: str) -> Page:
    """The page of ``TDG-E012``, ``E012``, ``12`` or ``NotFound``; raises ``NotFound`` with the nearest."""
    found = pages()
    if number := re.fullmatch(r"(?:TDG-?)?E?(\d{1,3})", name, re.IGNORECASE):
        name = f"TDG-E{int(number[1]):03}"
    by_name = {page.kind.__name__.lower(): page for page in found.values()}
    page = found.get(name) or by_name.get(name.lower())
    if page is None:
        names = [*found, *(page.kind.__name__ for page in found.values())]
        raise NotFound(f"no error is called {name!r}", mend=nearest(name, names) or "`tidings explain` lists them")
    return page
