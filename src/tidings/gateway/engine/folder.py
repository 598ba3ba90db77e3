"""The engine's folder: one engine at a time, the key of our apps, the configuration."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from pathlib import Path

from tidings.kernel.errors import BusReadOnly, BusUnavailable, InvalidOption, MissingExtra, Unsupported

from .configuration import KEY

LOCK, CONFIGURATION, KNOWN, CLUSTER, STORE = "engine.lock", "nats.conf", "topics", "cluster", "jetstream"
NOT_YET = "(a key that is made at the first start)"
LEAVING = 10.0  # seconds that a server may take to end after its engine was killed
AGAIN = 0.05


class Folder:
    """Where one engine keeps everything. Raises ``BusReadOnly`` where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = -1
        self.public = ""  # key of our apps

    async def open(self) -> None:
        """Nobody else has it until ``close``, and until the server has ended: it holds the lock, too.

        Raises ``BusUnavailable`` when another engine does.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            await self._lock()
            self.public = self.public_key()
        except OSError as error:
            self.close()
            mend = f"give this user the right to write to {self.path}, and room"
            raise BusReadOnly("the engine's folder cannot be used", why=str(error), mend=mend) from None
        except BaseException:
            self.close()
            raise

    async def _lock(self) -> None:
        try:
            import fcntl
        except ImportError as error:
            raise Unsupported("this system cannot run the engine", why=str(error), mend="Linux or macOS") from None
        deadline = time.monotonic() + LEAVING
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            holder = os.pread(self.lock, 20, 0).decode(errors="replace").strip()
            if alive(holder) or time.monotonic() > deadline:
                why = f"process {holder} has it" if alive(holder) else "the server of one that was killed still runs"
                mend = "stop that one, or take another folder"
                raise BusUnavailable(f"another engine runs on {self.path}", why=why, mend=mend)
            await asyncio.sleep(AGAIN)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def write(self, name: str, text: str) -> Path:
        """Replace a file at once, for its owner's eyes only."""
        path = self.path / name
        fd, new = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
        with open(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
        return path

    def belong(self, cluster: str) -> None:
        """It is of a server of that cluster, or ``""`` of one alone. Raises ``InvalidOption`` when it was of another.

        A cluster that finds what it does not know in a server's folder may remove it.
        """
        path = self.path / CLUSTER
        before = path.read_text() if path.exists() else ""
        if before != cluster and (self.path / STORE).exists():
            was, mend = (
                f"a server of the cluster {before!r}" if before else "a server alone",
                "guides/devices.md: move it",
            )
            raise InvalidOption(f"{self.path} is of {was}", why="its data would not survive the change", mend=mend)
        self.write(CLUSTER, cluster)

    def public_key(self, *, make: bool = True) -> str:
        """Of our apps: whoever can read the seed is one of them. Raises ``BusUnavailable`` if it is damaged."""
        try:
            import nkeys  # type: ignore[import-untyped]
        except ImportError as error:
            mend = "pip install 'tidings[engine]'"
            raise MissingExtra("the engine needs a package that is not installed", why=str(error), mend=mend) from None
        path = self.path / KEY
        if not path.exists():
            if not make:
                return NOT_YET
            self.write(KEY, nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode())
        try:
            return str(nkeys.from_seed(bytearray(path.read_bytes().strip())).public_key.decode())
        except (nkeys.NkeysError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise BusUnavailable(f"{path} is no key", why=why, mend="move it away: a new one is made") from None

    @property
    def known(self) -> set[str]:
        """First tokens of topics that the bus takes."""
        path = self.path / KNOWN
        return set(path.read_text().split()) if path.exists() else set()

    def know(self, firsts: set[str]) -> None:
        self.write(KNOWN, "\n".join(sorted(self.known | firsts)))


def alive(pid: str) -> bool:
    """Whether a process of that number runs."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
