"""Faults on purpose, for tests: processes under control, runs that are judged, and (``proxy``) a bad network.

``perform`` plays a ``Scenario`` with real processes on a real bus while a nemesis kills, freezes and ends them, and
returns a ``Report``: whether everything held that must hold, whatever was done. docs/reliability.md shows how.
"""

from . import nemeses
from .checker import Verdict, Violation, judge
from .history import Histories, Journal, Line, read
from .process import Process, Processes
from .proxy import Proxy, Way
from .run import Nemesis, Report, Run, perform
from .scenario import Body, Fate, Group, Scenario

__all__ = [
    "Body",
    "Fate",
    "Group",
    "Histories",
    "Journal",
    "Line",
    "Nemesis",
    "Process",
    "Processes",
    "Proxy",
    "Report",
    "Run",
    "Scenario",
    "Verdict",
    "Violation",
    "Way",
    "judge",
    "nemeses",
    "perform",
    "read",
]
