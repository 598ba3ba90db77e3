"""The Python files of a project, and whether one has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PAUSE = 0.3  # seconds between looks; in a large tree longer, so that looking takes a tenth of the time at most
SKIPPED = {"__pycache__", "node_modules", "site-packages", "build", "dist"}


class Files:
    """The Python files under some folders, as they were when last looked at."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.known = self._look()

    def changed(self) -> list[str]:
        """Wait a moment; the files that were written, made or removed since the last look."""
        time.sleep(max(PAUSE, 9 * self.took))
        now = self._look()
        changed = sorted(path for path in self.known.keys() | now if self.known.get(path) != now.get(path))
        self.known = now
        return [os.path.relpath(path, self.folders[0]) for path in changed]

    def _look(self) -> Mapping[str, tuple[int, int]]:
        began = time.monotonic()
        found = {}
        for entry in (entry for folder in self.folders for entry in python_files(folder)):
            try:
                status = entry.stat()
            except OSError:  # removed meanwhile
                continue
            found[entry.path] = (status.st_mtime_ns, status.st_size)
        self.took = time.monotonic() - began
        return found


def python_files(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The Python files under a folder; what is hidden, and environments, are left out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED and not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                yield from python_files(entry.path)
        elif entry.name.endswith(".py"):
            yield entry
