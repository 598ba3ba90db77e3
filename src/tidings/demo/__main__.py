"""``python -m tidings.demo``."""

from __future__ import annotations

import argparse
import sys

from tidings import TidingsError
from tidings.kernel.message import seconds

from . import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="tidings demo", description="The machine it runs on, watched through Tidings."
    )
    parser.add_argument("--url", help="the bus (default: sqlite:///tidings-demo.db)")
    parser.add_argument("--for", dest="duration", metavar="DURATION", help="stop after so long: 10s, 5m")
    parser.add_argument("--plain", action="store_true", help="lines instead of a screen, as without a terminal")
    given = parser.parse_args()
    try:
        main(given.url, seconds(given.duration, "--for") if given.duration else None, given.plain)
    except TidingsError as error:
        sys.exit(str(error))
