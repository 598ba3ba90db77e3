"""Runs one server, and outlives nobody who uses it: ``python -I -S keeper.py FD FOLDER``.

Theory of operation. FD is a listening Unix socket. Whoever uses the server holds a connection to it; when the last one
is gone, by closing it or by dying in whatever way, every process of the server is killed and FOLDER removed. So the
connections are a reference count that the kernel keeps.

A request is one line of JSON, `{"do": "pids"}`; its answer is another, `{"error": null, "result": [4711]}`.

The keeper is a *subreaper*: a descendant whose parent ends becomes its child. Whatever the server starts (shells,
Erlang's port mapper, PostgreSQL's workers, daemons in sessions of their own) is therefore found below it in /proc, and
nothing else is; process groups would miss some. If the keeper itself is killed, the server's first process gets
SIGKILL from the kernel.
"""

import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FIRST_USER = 30.0  # seconds in which somebody must have come

libc = ctypes.CDLL(None, use_errno=True)


class Keeper:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "command.json").read_text())
        self.main = 0  # the pid of the server's first process; 0: not running

    def running(self) -> bool:
        self.reap()
        return bool(self.main)

    def start(self) -> None:
        self.reap()
        if self.main:
            return
        self.kill()  # what an earlier run left
        with (self.folder / "log").open("ab") as log:
            self.main = subprocess.Popen(
                self.spec["argv"],
                cwd=self.folder,
                env=self.spec["env"],
                user=self.spec["user"],
                group=self.spec["user"],
                extra_groups=None if self.spec["user"] is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # no threads here
            ).pid

    def stop(self) -> None:
        """As an operator would, and by force after a while."""
        self.resume()
        if self.main:
            self.signal([self.main], self.spec["stop"])
        deadline = time.monotonic() + self.spec["grace"]
        while self.main and time.monotonic() < deadline:
            time.sleep(0.01)
            self.reap()
        self.kill()

    def kill(self) -> None:
        """SIGKILL for every process, and wait until none is left."""
        while pids := list(family()):
            self.signal(pids, signal.SIGKILL)
            self.reap()
            time.sleep(0.005)
        self.main = 0

    def pause(self) -> None:
        for _ in range(2):  # one may have started another meanwhile
            self.signal(family(), signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(family(), signal.SIGCONT)

    def pids(self) -> list[int]:
        self.reap()
        return list(family())

    def end(self) -> None:
        if self.spec["last"] is None:
            self.kill()
        else:
            self.spec |= {"stop": self.spec["last"], "grace": 3.0}
            self.stop()
        if self.spec["sweep"]:
            subprocess.run(self.spec["sweep"], cwd=self.folder, check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.spec["note"]:
            Path(self.spec["note"]).unlink(missing_ok=True)

    def signal(self, pids: Any, number: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == self.main:
                    self.main = 0

    def answer(self, line: bytes) -> bytes:
        result = error = None
        try:
            result = getattr(self, json.loads(line)["do"])()
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
        return json.dumps({"error": error, "result": result}).encode() + b"\n"


def family() -> Iterator[int]:
    """Every process below this one, zombies too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = children.get(os.getpid(), [])
    for pid in found:
        found += children.get(pid, [])
        yield pid


def main(fd: int, folder: Path) -> None:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the users decide; SIG_IGN would be inherited by the server
    keeper = Keeper(folder)
    listener = socket.socket(fileno=fd)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    last = None  # told, by the end of the connection, when all is removed
    users, waiting_until = 0, time.monotonic() + FIRST_USER
    try:
        while users or (last is None and time.monotonic() < waiting_until):
            for key, _ in selector.select(1.0):
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    users += 1
                    continue
                user = key.fileobj
                assert isinstance(user, socket.socket)
                with suppress(ConnectionError):
                    if line := user.recv(4096):
                        user.sendall(keeper.answer(line))
                        continue
                selector.unregister(user)
                users -= 1
                if users:
                    user.close()
                else:
                    last = user
            keeper.reap()
    finally:
        keeper.end()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
