"""Other libraries doing the work of ``bench/sqlite.py``, each in its own best documented way and with durable settings.

A module whose name has no leading underscore is a peer. It has ``NAME``, ``DURABLE`` (what really reaches the disk,
and when) and ``VERSION()``, and some of these, each of which is called in a process of its own with an empty folder:

- ``concurrent(folder, messages, publishers) -> float``: messages a second, each accepted when its publish returns
- ``publish(folder, messages) -> float``: as fast as its interface allows
- ``backlog(folder, messages) -> float``: consuming what was published before, the opening of the consumer included
- ``end_to_end(folder, messages) -> float``: publishing and consuming at once
- ``latency(folder, rate, seconds) -> list[float]``: seconds from the moment a message was due to its handler

A figure is returned only if every message was handled exactly once and settled; otherwise an error is raised. A
missing package is an ``ImportError`` on import, a missing server ``Missing`` (of ``tests/servers``) from ``VERSION()``.
"""
