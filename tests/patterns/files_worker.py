"""A process that watches a folder until it is killed: ``python -m tests.patterns.files_worker <bus> <folder>``."""

from __future__ import annotations

import asyncio
import sys

from tidings import App, Topic
from tidings.patterns.file_adapter import watch_files

found = Topic("files.found", bytes)


def main(url: str, folder: str) -> None:
    app = App("watcher", url)
    watch_files(app, folder, found, every="10ms", settle=0)

    @app.on("idle", live=True)
    async def idle(nothing: None) -> None: ...

    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
