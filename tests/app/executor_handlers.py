"""Handlers that child processes import, and the errors they raise. Bodies are JSON; files tell a test what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tidings import Defer, Delivery, Message, Reject, Retry
from tidings.kernel.errors import HandlerTimeout, Skip


class Picky(Exception):
    """Its ``__init__`` does not take its ``args``."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def echo(data: Any) -> Message[Any]:
    return Message("out", data=data)


def nothing(data: Any) -> None:
    return None


def who(data: Any) -> Message[Any]:
    return Message("out", data={"pid": os.getpid(), "main": sys.modules["__main__"].__dict__.get("__file__")})


def attempt(data: Any, delivery: Delivery) -> Message[Any]:
    return Message("out", data=[delivery.attempt, delivery.message.headers, delivery.message.key])


def grow(data: bytes) -> Message[bytes]:
    return Message("out", data=data + b"!")


def fail(data: str) -> None:
    raise {
        "value": ValueError("boom"),
        "system": OSError(2, "No such file", "x.txt"),
        "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        "picky": Picky(7, detail="said"),
        "unpicklable": Unpicklable(),
        "local": type("Local", (Exception,), {})("nobody knows me"),
        "ours": HandlerTimeout("said", why="because", mend="so"),
        "retry": Retry("5m", "vendor is down"),
        "defer": Defer(30, "too early"),
        "reject": Reject("never"),
        "skip": Skip("nothing to do"),
        "exit": SystemExit(4),
        "interrupt": KeyboardInterrupt(),
    }[data]


def unsendable(data: str) -> Message[Any]:
    key: Any = {"bad": object(), "wrong": 7}.get(data)
    return Message("out", data=[data], key=key)


def misbehave(data: Any) -> Message[Any]:
    """``"ok"``, or ``[what, *arguments]``."""
    what, *arguments = [data] if isinstance(data, str) else data
    if what == "exit":
        os._exit(arguments[0])
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        Path(arguments[0]).write_text(str(os.getpid()))
        threading.Event().wait()
    if what == "until":  # says that it runs, then goes on until told
        started, go = map(Path, arguments)
        started.write_text(str(os.getpid()))
        while not go.exists():
            time.sleep(0.002)
    if what == "spin":
        end = time.perf_counter() + arguments[0]
        while time.perf_counter() < end:
            pass
    if what == "fork":  # a forked process keeps the child's descriptors, and outlives it
        pid = os.fork()
        if not pid:
            signal.pause()
        Path(arguments[0]).write_text(str(pid))
        os._exit(5)
    if what == "descriptors":
        return Message("out", data=sorted(os.listdir("/proc/self/fd")))
    if what == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if what == "subprocess":
        return Message("out", data=subprocess.run(["true"], check=True).returncode)
    return Message("out", data=os.getpid())
