"""For tests: an app on a memory bus (``running``), virtual time (``run_virtual``), and the suite for transports
(``tidings.testing.conformance``). Nothing at run time imports this."""

from .clock import VirtualLoop, run_virtual
from .running import Captured, running

__all__ = ["Captured", "VirtualLoop", "run_virtual", "running"]
