"""The disk fails: all of its nemeses, in files by what goes wrong."""

from __future__ import annotations

from tests.faults import disk_io, disk_power, disk_room, disk_torn

__all__ = ["disk_io", "disk_power", "disk_room", "disk_torn"]
