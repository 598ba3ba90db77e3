"""Chromium without a window, driven by the DevTools protocol: Debian's ``chromium``."""

from __future__ import annotations

import os

from .base import Server, binary, exchange


class Chromium(Server):
    """``port`` is that of the DevTools protocol: ``PUT /json/new`` opens a tab."""

    name, scheme = "chromium", "http"
    packages = ("chromium",)

    @classmethod
    def program(cls) -> str:
        return binary("chromium")

    def argv(self) -> list[str]:
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none, and these pages are ours
        place = [f"--user-data-dir={self.folder / 'profile'}", f"--remote-debugging-port={self.port}"]
        small = ["--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"]
        return [self.program(), "--headless=new", *alone, *quiet, *small, *place, "about:blank"]

    def check(self) -> None:
        exchange(self.port, b"GET /json/version HTTP/1.1\r\nHost: localhost\r\n\r\n", b"webSocketDebuggerUrl")
