"""Servers by hand, until Ctrl-C; each with the variable that makes the tests use it."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from . import node, session
from .base import Missing, Server
from .install import install

NAMES = [name for name in session.KINDS if not name.startswith("redis_")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--install", action="store_true", help="fetch what is missing, and run nothing")
    given = parser.parse_args()
    names = given.names or NAMES
    if unknown := [name for name in names if name not in session.KINDS]:
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.install:
        try:
            install(session.KINDS[name] for name in names)
            if not given.names:
                node.install()
        except Missing as e:
            print(e, file=sys.stderr)
            return 1
        return 0
    return serve(names)


def serve(names: list[str]) -> int:
    begun = time.monotonic()
    started = session.start_all(names)
    for name, server in started.items():
        if isinstance(server, Server):
            print(f"# {server.took:5.1f} s {memory(server):5.0f} MB  {server.folder}")
            print(f"export TIDINGS_TEST_{name.upper()}='{server.url}'")
            for listener in server.schemes:
                print(f"export TIDINGS_TEST_{name.upper()}_{listener.upper()}='{server.url_of(listener)}'")
        else:
            print(f"# {name}: {server}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # which may come as soon as "ready" was read
        print(f"# ready after {time.monotonic() - begun:.1f} s; Ctrl-C ends them and removes their data", flush=True)
        while True:
            time.sleep(0.2)  # a signal that comes just before a sleep does not end it
    session.end()
    return 0 if all(isinstance(server, Server) for server in started.values()) else 1


def memory(server: Server) -> float:
    """Megabytes of its processes; what they share is divided among them."""
    total = 0
    for pid in server.pids():
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


if __name__ == "__main__":
    sys.exit(main())
