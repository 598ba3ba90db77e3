"""Functions that child processes import."""

from __future__ import annotations

import os

from tidings import App, Service

double = Service("math.double", int, int)
app = App("math", "memory://")


@app.answer(double, run="process", concurrency=1)
def answer(n: int) -> int:
    if n == 0:
        raise ValueError("no zero")
    if n < 0:
        os._exit(3)
    return 2 * n
