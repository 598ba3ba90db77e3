"""Making records in a process of its own: reading a file takes about as long as publishing what is in it."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NoReturn

from tidings.kernel.errors import TidingsError

from ._rows import Item, Plan
from ._sorting import PIECE, pieces, put

PIPE = 2**20  # bytes: some pieces; for each 64 KiB, the usual, who reads would wait for the GIL anew


class Apart:
    """Iterates over what a child makes, and raises what it raised; then ``plan.skipped`` is as the child left it.

    Made before there are threads, for it forks; the files it reads are open already, so that their positions can be
    seen here.
    """

    def __init__(self, items: Iterator[Item], plan: Plan) -> None:
        self.plan = plan
        reading, writing = os.pipe()
        if sys.platform == "linux":
            with suppress(OSError):  # this user has too many such pipes
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE)
        self.child = os.fork()
        if not self.child:
            os.close(reading)
            _work(items, plan, writing)
        os.close(writing)
        self.file = open(reading, "rb")  # noqa: SIM115

    def __iter__(self) -> Iterator[Item]:
        with self.file:
            error: bytes | None = None
            for piece in pieces(self.file):
                items, self.plan.skipped, error = piece
                yield from items
        os.waitpid(self.child, 0)
        if error is None:
            raise TidingsError("the process that reads the files was killed", mend="is there enough memory? try again")
        if error:
            raise pickle.loads(error)


def _work(items: Iterator[Item], plan: Plan, writing: int) -> NoReturn:
    """The child's whole life. Nobody reads any more: it ends, too; Ctrl-C is its parent's concern."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # records are no garbage, and have no cycles
    try:
        with open(writing, "wb") as file:
            error = b""
            try:
                while piece := list(islice(items, PIECE)):
                    put(file, (piece, plan.skipped, None))
            except Exception as raised:
                error = pickle.dumps(raised)
            put(file, ([], plan.skipped, error))
    except OSError:
        pass
    finally:
        os._exit(0)
