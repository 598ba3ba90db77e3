"""Finding the app that ``module:app`` names. The module is imported for real, so that child processes find it too."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import sys
from functools import reduce
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from tidings import App
from tidings.kernel.errors import InvalidOption, NotFound, TidingsError, nearest

from ._watch import python_files
from .show import UserCodeFailed

APP = re.compile(r"^(\w+)\s*(?::[^=\n]+)?=\s*(?:tidings\.)?App\(", re.MULTILINE)


def find_app(target: str) -> App:
    """The app of ``module:app``, ``module``, ``path/file.py:app`` or ``path/file.py``.

    Raises ``NotFound`` with the nearest names; ``UserCodeFailed`` when importing the module raised.
    """
    named, _, attribute = target.partition(":")
    _look_in(Path.cwd())
    path = _path(named)
    name = _name_of(path) if path else named
    module = _imported(name)
    if path and Path(module.__file__ or "").resolve() != path.resolve():
        raise NotFound(
            f"{path} is hidden by {module.__file__ or 'a built-in module'}",
            why=f"both are module {name!r}",
            mend="rename the file",
        )
    return _app_in(module, attribute)


def _path(named: str) -> Path | None:
    return Path(named) if named.endswith(".py") or "/" in named else None


def source_folder(target: str) -> Path:
    """Where the files of a target are: of a module that is here, here."""
    path = _path(target.partition(":")[0])
    return path.resolve().parent if path else Path.cwd()


def find_target(target: str | None, folder: Path) -> str:
    """``target`` if there is such a module or file; without one, the only app in ``folder``.

    Nothing is imported, so that an app that cannot be imported just now is found too. Raises ``NotFound``, as
    ``find_app`` does, and ``InvalidOption`` with the names there are.
    """
    if target is not None:
        _check(target.partition(":")[0], folder)
        return target
    apps = _apps(folder)
    if len(apps) != 1:
        what = "which app?" if apps else f"no `name = App(...)` was found in {folder}"
        mend = " or ".join(apps[:8]) if apps else "module:app; `tidings new NAME` makes a project"
        raise InvalidOption(what, mend=f"say which: tidings dev {mend}")
    return apps[0]


def _check(named: str, folder: Path) -> None:
    """Raise what ``find_app`` would for a module or file that is not there."""
    _look_in(folder)
    if path := _path(named):
        _name_of(path)
        return
    folders, parts = list[str](), named.split(".")
    for count, part in enumerate(parts, 1):
        name = ".".join(parts[:count])
        spec = None
        if part:
            spec = importlib.util.find_spec(name) if count == 1 else PathFinder.find_spec(name, folders)
        if spec is None:
            if f"{name.rpartition('.')[0]}:{part}" in _apps(folder):
                raise _no_module_but_app(named, name)
            raise _no_module(named, name, folders if count > 1 else None)
        folders = list(spec.submodule_search_locations or [])


def _apps(folder: Path) -> list[str]:
    """``module:app``, or ``path/file.py:app``, of each app that a file makes at its top; tests do not count."""
    found = []
    for entry in python_files(folder):
        path = Path(entry.path).relative_to(folder)
        if path.name.startswith("test_") or path.name == "conftest.py" or path.parts[0] == "tests":
            continue
        try:
            text = Path(entry.path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += [f"{_module(path, folder)}:{name}" for name in (_made(text) if "tidings" in text else [])]
    return found


def _made(text: str) -> list[str]:
    """The names to which a file assigns an App; of one that cannot be parsed, what looks like that."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return APP.findall(text)
    calls = {"tidings.App"}
    for node in body:
        if isinstance(node, ast.Import):
            calls |= {f"{name.asname}.App" for name in node.names if name.name == "tidings"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("tidings", "tidings.app"):
            calls |= {name.asname or "App" for name in node.names if name.name == "App"}
    names = list[str]()
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if ast.unparse(node.value.func) in calls:
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _module(path: Path, folder: Path) -> str:
    """How a file is imported from ``folder``: as a module of it, or else by its path."""
    packages = path.parents[: len(path.parts) - 1]
    if all((folder / package / "__init__.py").is_file() for package in packages):
        return ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return str(path)


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


def _no_module(wanted: str, missing: str, folders: list[str] | None = None) -> NotFound:
    """``folders``: of the package it should be in, if that was not imported."""
    parent, _, last = missing.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and isinstance(getattr(package, last, None), App):
        return _no_module_but_app(wanted, missing)
    if folders is None:
        folders = list(getattr(package, "__path__", [])) if parent else [str(Path.cwd())]
    prefix = f"{parent}." if parent else ""
    known = [f"{prefix}{found.name}" for found in pkgutil.iter_modules(folders)]
    why = f"looked in {folders[0]}, and where Python looks" if folders else f"{parent!r} is no package"
    return NotFound(f"there is no module {missing!r}", why=why, mend=nearest(missing, known) or _listed(known))


def _no_module_but_app(wanted: str, app: str) -> NotFound:
    parent, _, name = app.rpartition(".")
    return NotFound(f"{wanted!r} is no module", mend=f"write {parent}:{name}")


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
