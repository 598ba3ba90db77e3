"""The project that has an app's code."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from tidings import App


def project_file(folder: Path) -> Path | None:
    """The nearest pyproject.toml, in a folder or above it; what this user may not look into has none."""
    files = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    return next((file for file in files if os.path.isfile(file)), None)


def version_of(app: App) -> str:
    """That of the project that has the app's code."""
    folders = [Path(r.where).resolve().parent for r in app.registrations] or [Path.cwd()]
    try:
        file = project_file(folders[0])
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project") if file else None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        project = None
    return str(project.get("version", "0.0.0")) if isinstance(project, dict) else "0.0.0"
