"""One measurement: ``python -m bench.measure <module> <subject> [--quick]`` prints a ``Measurement`` as JSON."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .harness import Measurement, scenario
from .histogram import Timed
from .machine import own_cpu, peak_rss


@contextmanager
def bus_folder() -> Iterator[Path]:
    """An empty folder for bus files, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as folder:
        yield Path(folder)


def main(module: str, subject: str, *options: str) -> None:
    subjects = {found.name: found for found in scenario(module, "--quick" in options).subjects}
    gc.collect()
    before = own_cpu()
    found = subjects[subject].measure()
    histogram = found.histogram if isinstance(found, Timed) else None
    values = list(found.values if isinstance(found, Timed) else found)
    measured = Measurement(values, own_cpu() - before, peak_rss(), histogram)
    sys.stdout.write("\n" + msgspec.json.encode(measured).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {error}".partition("\n")[0])  # the last line is the reason
