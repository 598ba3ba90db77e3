"""One measurement: ``python -m bench.measure <scenario> <subject> [--quick]`` prints its numbers as a JSON list."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .harness import scenario


@contextmanager
def bus_folder() -> Iterator[Path]:
    """An empty folder for bus files, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
        yield Path(folder)


def main(name: str, subject: str, *options: str) -> None:
    subjects = {found.name: found for found in scenario(name, "--quick" in options).subjects}
    gc.collect()
    values = list(subjects[subject].measure())
    sys.stdout.write("\n" + msgspec.json.encode(values).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
