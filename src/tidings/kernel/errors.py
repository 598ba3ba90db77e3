"""The whole error tree: whose fault it is, a stable code, and how to mend it.

Three families, by whose fault it is:

- ``UsageError``: the caller's code or configuration. Raised at once, at the line that is wrong.
- ``BusError``: the bus could not do what it promises. Nothing that was accepted is lost.
- ``DeliveryError``: one message could not be handled. It decides that message's fate and nobody else's.

``Retry``, ``Reject``, ``Defer``, ``Skip`` and ``Partial`` are no errors: a handler raises them to say
what shall happen to its message (``outcome.py`` reads them).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import ClassVar

Duration = str | float | timedelta
"""``"250ms"``, ``"5s"``, ``"1h30m"``, ``"2d"``, a number of seconds, or a ``timedelta``."""

PACKAGE, LIBRARY = os.path.dirname(os.path.dirname(__file__)) + os.sep, os.path.dirname(os.__file__) + os.sep


class TidingsError(Exception):
    """Base of every error of ours.

    Printed, it has one shape everywhere: code and what happened, then where (file:line of the user's
    code), why, and how to mend it; parts that are not known are left out.
    """

    code: ClassVar[str] = "TDG-E000"
    mending: ClassVar[str] = ""  # said where an error was raised without a ``mend`` of its own

    def __init_subclass__(cls, code: str = "", mend: str = "") -> None:
        cls.code, cls.mending = code or cls.code, mend or cls.mending

    def __init__(self, what: str, /, *, why: str = "", mend: str = "", where: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.mend, self.where = what, why, mend or self.mending, where

    def __str__(self) -> str:
        parts = [("where", self.where), ("why", self.why), ("mend", self.mend)]
        return "\n".join([f"{self.code}: {self.what}", *(f"  {name + ':':<7}{text}" for name, text in parts if text)])


class UsageError(TidingsError, code="TDG-E013"):
    """The calling code or configuration is wrong. Knows the line: the nearest frame outside this package."""

    def __init__(self, what: str, /, *, why: str = "", mend: str = "", where: str = "") -> None:
        super().__init__(what, why=why, mend=mend, where=where or caller())


class InvalidName(UsageError, code="TDG-E001"):
    """A topic, pattern, service, group or bus has an invalid name."""


class InvalidOption(UsageError, code="TDG-E002"):
    """An option has a value that means nothing: a duration, a priority, an unknown name."""


class InvalidHandler(UsageError, code="TDG-E003", mend="`tidings explain E003` shows what a handler can be"):
    """A function cannot be a handler: its parameters, its types or its place."""


class DuplicateGroup(UsageError, code="TDG-E004"):
    """Two handlers would share one group, so each would get only a part of the messages."""


class Unsupported(UsageError, code="TDG-E005"):
    """The transport cannot do what was asked. Refused at start-up; never silently degraded."""


class InvalidURL(UsageError, code="TDG-E006"):
    """A bus URL cannot be understood, or no transport knows its scheme."""


class MissingExtra(UsageError, code="TDG-E007"):
    """A feature needs a package that is not installed."""


class PayloadRefused(UsageError, code="TDG-E008"):
    """A payload cannot be published: wrong type, NaN, a lone surrogate, or nothing that can be encoded."""


class TooLarge(UsageError, code="TDG-E009", mend="publish a reference to it (EIP: Claim Check)"):
    """A payload is larger than this bus accepts with room left for a dead letter's context."""


class NotOpen(UsageError, code="TDG-E010", mend="use `async with app:` or `async with app.connect():`"):
    """The app is not open: use ``async with app`` or ``async with app.connect()``."""


class NothingToRun(UsageError, code="TDG-E011"):
    """An app without handlers was run."""


class NotFound(UsageError, code="TDG-E012", mend="`tidings groups` and `tidings dead ls --all` list what there is"):
    """A group, topic, dead letter, module or app that was named does not exist."""


class BusError(TidingsError, code="TDG-E020", mend="`tidings doctor` looks at the bus and at this machine"):
    """The bus could not do what it promises."""


class BusUnavailable(BusError, code="TDG-E021"):
    """The bus cannot be opened or reached."""


class BusReadOnly(BusUnavailable, code="TDG-E022"):
    """The bus file or its folder cannot be written."""


class BusCorrupt(BusUnavailable, code="TDG-E023"):
    """The bus file is damaged, or is no bus file."""


class BusTooNew(BusUnavailable, code="TDG-E024"):
    """The bus was written by a newer version of Tidings."""


class BusFull(BusError, code="TDG-E025"):
    """The bus has no room: its size limit or the disk is reached. What was accepted is safe."""


class BusForked(BusError, code="TDG-E026"):
    """A bus that was opened before ``fork()`` was used in the child."""


class UnsafeLibrary(BusUnavailable, code="TDG-E027"):
    """The installed client library has a bug that can damage data."""


class Conflict(BusError, code="TDG-E028", mend="read it again, and decide anew"):
    """A record is not as it was read: somebody else changed it meanwhile. Nothing of what was based on it happened."""

    table = key = ""


class PublishFailed(BusError, code="TDG-E030"):
    """Not every message of a publish was accepted.

    ``accepted``, ``rejected`` (never will be) and ``unknown`` (perhaps stored: publish again with the same
    id) are indices into the published sequence.
    """

    accepted: Sequence[int] = ()
    rejected: Sequence[int] = ()
    unknown: Sequence[int] = ()


class RequestError(TidingsError, code="TDG-E040", mend="ask again"):
    """A request brought no reply."""


class NoAnswerer(RequestError, code="TDG-E041", mend="start the app that answers it"):
    """Nobody answers this service."""


class RequestTimeout(RequestError, code="TDG-E042", mend="give it a longer timeout, or see what its app is busy with"):
    """The deadline passed before the reply came."""


class AnswerFailed(RequestError, code="TDG-E043", mend="correct what was asked, or mend the answerer"):
    """The answerer raised an error; its type and text are in ``what``."""


class ReplyRestarted(RequestError, code="TDG-E044"):
    """A streamed reply began anew on another process; what came before belongs to a lost run."""


class DeliveryError(TidingsError, code="TDG-E050"):
    """One message could not be handled. It goes to the dead letters at once."""


class Undecodable(DeliveryError, code="TDG-E051"):
    """The body is not what the handler's type says."""


class WrongReturn(DeliveryError, code="TDG-E052"):
    """A handler returned something that is no message."""


class HandlerTimeout(TidingsError, code="TDG-E053", mend="give it a longer timeout=, or make it faster"):
    """A handler ran longer than its ``timeout``. Counts as a failure."""


class HandlerCrashed(TidingsError, code="TDG-E054", mend="look for sys.exit(), native code and a lack of memory in it"):
    """The child process that ran a handler died. Counts as a failure."""


class Retry(Exception):
    """Raised by a handler: this attempt failed; try again after ``delay`` (default: the backoff's)."""

    def __init__(self, delay: Duration | None = None, why: str = "retry asked for") -> None:
        super().__init__(delay, why)
        self.delay, self.why = delay, why

    def __str__(self) -> str:
        return self.why


class Reject(Exception):
    """Raised by a handler: this message can never be handled; to the dead letters at once."""


class Defer(Exception):
    """Raised by a handler: not now; again after ``delay``, not counted as a failure."""

    def __init__(self, delay: Duration, why: str = "deferred") -> None:
        super().__init__(delay, why)
        self.delay, self.why = delay, why

    def __str__(self) -> str:
        return self.why


class Skip(Exception):
    """Raised by a handler: nothing to do; settled, counted, logged."""


class Partial(Exception):
    """Raised by a batch handler: the items at these indices failed, the others are done."""

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(errors)
        self.errors = {i: e if isinstance(e, BaseException) else Exception(e) for i, e in errors.items()}


def text_of(error: BaseException) -> str:
    """An error's text, whatever its ``__str__`` does."""
    try:
        return str(error).encode(errors="replace").decode()
    except Exception:
        return "(it has no text)"


def users(error: BaseException) -> BaseException:
    """The error; its traceback begins with the first frame that is not of this package, if there is one."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE):
        trace = trace.tb_next
    return error.with_traceback(trace or error.__traceback__)


def caller() -> str:
    """``file:line`` of the nearest frame outside this package and the standard library, or ``""``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((PACKAGE, LIBRARY, "<")) or "site-packages" in name.removeprefix(PACKAGE):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def nearest(name: str, names: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the nearest of ``names``, or ``""``."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else ""
