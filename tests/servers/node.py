"""Packages of Node, from npm by package-lock.json: for clients in JavaScript."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from .base import Missing, binary
from .install import debian, run
from .java import CACHE, HERE

FILES = ("package.json", "package-lock.json")


def modules() -> Path:
    """The folder that has ``node_modules``: a new one when what to fetch has changed. Raises ``Missing``."""
    binary("node")
    if not folder().is_dir():
        raise Missing("packages of Node are missing: python -m tests.servers --install")
    return folder()


def folder() -> Path:
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES))
    return CACHE / f"node-{digest.hexdigest()[:8]}"


def install() -> None:
    """Fetch them, unless they are there. Raises ``Missing`` with what to do by hand."""
    if not all(map(shutil.which, ("node", "npm"))):
        debian(["nodejs", "npm"])
    done = folder()
    if done.is_dir():
        return
    made = done.with_name(f"{done.name}.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        for name in FILES:
            shutil.copy(HERE / name, made)
        if run([binary("npm"), "ci", "--prefix", str(made), "--no-audit", "--no-fund", "--ignore-scripts"]):
            raise Missing(f"npm did not fetch them: npm ci --prefix {HERE}")
        if not done.exists():
            made.rename(done)
    finally:
        shutil.rmtree(made, ignore_errors=True)
