"""``tidings new``: a small project that runs, tests and deploys."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import unicodedata
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

from cyclopts import Parameter

from tidings import __version__
from tidings.kernel.errors import InvalidName, InvalidOption

from . import show
from ._options import DryRun, Json

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 30  # of a system user, with room to spare
FOLDERS = {"bin", "build", "data", "deploy", "dist", "docs", "etc", "lib", "src", "test", "tests", "var", "venv"}
USERS = {
    "adm",
    "backup",
    "daemon",
    "games",
    "list",
    "lp",
    "mail",
    "man",
    "news",
    "nobody",
    "proxy",
    "root",
    "sync",
    "sys",
}

TEMPLATES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    ".gitignore": "gitignore.in",
    ".dockerignore": "dockerignore.in",
    "$package/__init__.py": "init.py.in",
    "$package/app.py": "app.py.in",
    "tests/test_app.py": "test_app.py.in",
    "deploy/$name.service": "service.in",
    "deploy/Dockerfile": "Dockerfile.in",
}


def new(
    folder: Annotated[str, Parameter(name="NAME", help="Of the project, and of its folder, which it makes.")],
    /,
    *,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a small project: an app with a retry and a service, its tests, a README, and what deploys it."""
    path = Path(os.path.abspath(folder))
    name = check_name(path.name, os.path.dirname(folder))
    _refuse_existing(path)
    project = rendered(name)
    if not dry_run:
        _write(path, project)
    if json:
        show.document({"name": name, "folder": str(path), "files": list(project), "dry_run": dry_run})
        return
    show.say(f"{'would make' if dry_run else 'made'} {folder}")
    for file in project:
        show.say(f"  {file}")
    if not dry_run:
        there = f"cd {folder} && " if path != Path.cwd() else ""
        show.note(f"\nnext: {there}tidings dev\nREADME.md has the other commands")


def check_name(name: str, parent: str = "") -> str:
    """``name``, if a project in ``parent`` can be called that; raises ``InvalidName`` with the nearest valid one."""
    mended = shlex.quote(os.path.join(parent, _mended(name)))
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        why = f"small letters, digits and single '-', a letter first, {LONGEST} at most"
        raise InvalidName(f"{name!r} is no name for a project", why=why, mend=f"tidings new {mended}")
    if why := _taken(name):
        raise InvalidName(f"a project should not be called {name!r}", why=why, mend=f"tidings new {mended}")
    return name


def _mended(name: str) -> str:
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).casefold()  # OrderDesk
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    plain = (plain if plain[:1].isalpha() else f"app-{plain}".rstrip("-"))[:LONGEST].rstrip("-")
    return f"{plain[: LONGEST - 4]}-app" if _taken(plain) else plain


def _taken(name: str) -> str:
    """Why a name would make a bad package; empty if it would not."""
    package = name.replace("-", "_")
    if name in FOLDERS:
        return f"a folder that is called {name!r} holds something else than a package"
    if name in USERS:
        return f"it would run as a user that is called {name!r}, who is somebody else"
    if keyword.iskeyword(package):
        return f"{package!r} means something in Python"
    return f"its package would hide the module {package!r}" if importlib.util.find_spec(package) else ""


def _refuse_existing(path: Path) -> None:
    if not path.exists():
        return
    there = sorted(each.name for each in path.iterdir() if each.name != ".git") if path.is_dir() else ["a file"]
    if there:
        raise InvalidOption(
            f"{path} exists already",
            why=f"there is {', '.join(there[:5])}",
            mend="give another name, or an empty folder",
        )


def rendered(name: str) -> dict[str, str]:
    """The files of a project: path, text."""
    values = {"name": name, "package": name.replace("-", "_"), "version": __version__}
    source = files("tidings.cli") / "templates"
    return {
        Template(path).substitute(values): Template((source / template).read_text(encoding="utf-8")).substitute(values)
        for path, template in TEMPLATES.items()
    }


def _write(path: Path, project: dict[str, str]) -> None:
    try:
        for file, text in project.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{path} cannot be written", why=str(error), mend="choose another folder") from None
