"""A durable bus for MQTT devices with one command: the NATS server, run and watched. Extra ``tidings[engine]``.

Public names:
"""

from .configuration import Cluster, Options
from .devices import Device, Topics, add, read, remove
from .engine import Engine

__all__ = ["Cluster", "Device", "Engine", "Options", "Topics", "add", "read", "remove"]
