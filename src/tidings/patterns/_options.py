"""Options of the patterns that keep records: read, checked, refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from tidings.inject import name_of, where
from tidings.kernel.errors import InvalidHandler, InvalidOption, WrongReturn, nearest
from tidings.kernel.message import seconds
from tidings.kernel.topics import token
from tidings.router import Router
from tidings.state import MAX_KEY, is_key


def durations(given: dict[str, Any], *names: str) -> None:
    """Turn these options into seconds. Raises ``InvalidOption``, for 0 as well."""
    for name in names:
        if name in given:
            given[name] = seconds(given[name], name)
            if not given[name]:
                raise InvalidOption(f"{name} cannot be 0", mend='a duration: "10s"')


def counts(given: Mapping[str, Any], *names: str, least: int = 1) -> None:
    """Raise ``InvalidOption`` unless these options are numbers, and not too small."""
    for name in names:
        value = given.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidOption(f"{name} cannot be {value!r}", mend=f"a number, at least {least}")


def choices(given: Mapping[str, Any], **known: tuple[str, ...]) -> None:
    """Raise ``InvalidOption`` unless these options are one of a few words."""
    for name, words in known.items():
        if given.get(name, words[0]) not in words:
            raise InvalidOption(f"{name} cannot be {given[name]!r}", mend=f"one of {', '.join(map(repr, words))}")


def functions(**given: Any) -> None:
    """Raise ``InvalidOption`` unless these options are functions, or not given."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise InvalidOption(f"{name} cannot be {value!r}", mend=f"a function: {name}=lambda payload: ...")


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ``InvalidOption`` for an option that ``what`` does not have."""
    for name in given:
        if name not in known:
            raise InvalidOption(f"{what} has no option {name!r}", mend=nearest(name, known))


def group_of(app: Router, fn: Callable[..., Any], given: str) -> str:
    """The name of a pattern's group and of its tables. Raises ``InvalidOption`` if it cannot be told yet."""
    name = getattr(app, "name", "")
    if given or name:
        return given or f"{name}.{token(fn.__name__)}"
    what, why = f"{fn.__qualname__}() needs a group=", "its records are kept by that name, and a Router has none"
    raise InvalidOption(what, why=why, mend=f'group="shop.{fn.__name__}"', where=where(fn))


def checked_key(key: Any) -> str:
    """What ``by=`` returned, if records can be found by it. Raises ``WrongReturn``: a dead letter."""
    if is_key(key):
        return key  # type: ignore[no-any-return]
    mend = f"return a str without NUL and lone surrogates, of at most {MAX_KEY} characters"
    raise WrongReturn(f"by= returned {key!r:.100}", mend=mend)


def total_type(fold: Callable[..., Any]) -> Any:
    """What a ``fold=`` says that it returns, by which totals are kept. Raises ``InvalidHandler``."""
    try:
        return get_type_hints(fold)["return"]
    except Exception as error:
        what, mend = f"{name_of(fold)}() does not say what it returns", "annotate it: def add(...) -> Total"
        raise InvalidHandler(what, why=str(error), mend=mend, where=where(fold)) from None


def often(wait: float) -> float:
    """How often to look for what is due after so long: seconds."""
    return min(1.0, max(0.05, wait / 10))
