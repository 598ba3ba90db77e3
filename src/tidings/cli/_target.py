"""Finding the app that ``module:app`` names. The module is imported for real, so that child processes find it too."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType

from tidings import App
from tidings.kernel.errors import NotFound, TidingsError, nearest

from .show import UserCodeFailed


def find_app(target: str) -> App:
    """The app of ``module:app``, ``module``, ``path/file.py:app`` or ``path/file.py``.

    Raises ``NotFound`` with the nearest names; ``UserCodeFailed`` when importing the module raised.
    """
    named, _, attribute = target.partition(":")
    _look_in(Path.cwd())
    path = Path(named) if named.endswith(".py") or "/" in named else None
    name = _name_of(path) if path else named
    module = _imported(name)
    if path and Path(module.__file__ or "").resolve() != path.resolve():
        raise NotFound(
            f"{path} is hidden by {module.__file__ or 'a built-in module'}",
            why=f"both are module {name!r}",
            mend="rename the file",
        )
    return _app_in(module, attribute)


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _name_of(path: Path) -> str:
    """The module name of a file; its folder, or the one of its topmost package, joins ``sys.path``."""
    if not path.is_file():
        known = sorted(found.name for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise NotFound(f"there is no file {path}", mend=nearest(path.name, known) or _listed(known))
    folder, parts = path.resolve().parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    _look_in(folder)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserCodeFailed(f"importing {name} failed", error) from error
        raise _no_module(name, error.name) from None
    except TidingsError:
        raise
    except (ValueError, TypeError) as error:
        if "." not in name.strip(".") and not name.isidentifier():  # "", ".", "a b"
            raise _no_module(name, name) from None
        raise UserCodeFailed(f"importing {name} failed", error) from error
    except (Exception, SystemExit) as error:
        raise UserCodeFailed(f"importing {name} failed", error) from error


def _no_module(wanted: str, missing: str) -> NotFound:
    parent, _, last = missing.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and isinstance(getattr(package, last, None), App):
        return NotFound(f"{wanted!r} is no module", mend=f"write {parent}:{last}")
    folders = list(getattr(package, "__path__", [])) if parent else [str(Path.cwd())]
    prefix = f"{parent}." if parent else ""
    known = [f"{prefix}{found.name}" for found in pkgutil.iter_modules(folders)]
    why = f"looked in {folders[0]}, and where Python looks" if folders else f"{parent!r} is no package"
    return NotFound(f"there is no module {missing!r}", why=why, mend=nearest(missing, known) or _listed(known))


def _listed(names: list[str]) -> str:
    return f"there is {', '.join(names[:8])}" if names else ""


def _app_in(module: ModuleType, attribute: str) -> App:
    apps = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    where = f"{module.__file__}:1"
    if attribute:
        try:
            found: object = reduce(getattr, attribute.split("."), module)
        except AttributeError:
            found = None
        if isinstance(found, App):
            return found
        what = f"{module.__name__} has no {attribute!r}"
        if found is not None:
            what = f"{module.__name__}:{attribute} is no App: it is of type {type(found).__name__}"
        mend = nearest(attribute, apps) or _listed([f"{module.__name__}:{name}" for name in apps])
        raise NotFound(what, mend=mend or "make one: app = App('name')", where=where)
    distinct = {id(app): name for name, app in reversed(apps.items())}
    if len(distinct) == 1:
        return next(iter(apps.values()))
    names = [f"{module.__name__}:{name}" for name in apps]
    if names:
        raise NotFound(
            f"{module.__name__} has {len(distinct)} apps", mend=f"say which: {' or '.join(names)}", where=where
        )
    raise NotFound(f"{module.__name__} has no App", mend="make one at the top of it: app = App('name')", where=where)
