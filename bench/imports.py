"""How long ``import tidings`` takes in a fresh process, and what of it takes longest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from .harness import Figure, Scenario, Subject

TIMED = "import time; began = time.perf_counter(); import tidings; print((time.perf_counter() - began) * 1e3)"


def imported() -> Sequence[float]:
    """Milliseconds; asked of a process that has imported nothing else."""
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True)
    return (float(done.stdout),)


def notes() -> str:
    """The twelve slowest modules by ``-X importtime``, each without what it imports itself."""
    command = [sys.executable, "-X", "importtime", "-c", "import tidings"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[1:]
    entries = [[part.strip() for part in line.removeprefix("import time:").split("|")] for line in lines]
    own = sorted(((int(self), name) for self, _, name in entries if self.isdigit()), reverse=True)
    return "slowest imports by themselves, ms:\n" + "\n".join(f"  {us / 1000:6.1f}  {name}" for us, name in own[:12])


def scenario(quick: bool) -> Scenario:
    return Scenario((Subject("import tidings", (Figure("time", "ms", at_most=80.0),), imported),), 15, notes)
