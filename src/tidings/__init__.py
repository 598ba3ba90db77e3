"""Event-driven Python, from one file to a fleet.

Write a handler once, run it on a durable SQLite file with nothing installed, move to a broker by changing a URL, and
get the same outcome everywhere when things fail.
"""

from .app import App
from .channels import Service, Topic
from .connect import Client, connect
from .inject import Depends
from .kernel.errors import (
    BusError,
    BusFull,
    Defer,
    DeliveryError,
    NoAnswerer,
    Partial,
    PublishFailed,
    Reject,
    RequestError,
    RequestTimeout,
    Retry,
    Skip,
    TidingsError,
    UsageError,
)
from .kernel.message import Message
from .kernel.outcome import Backoff, Breaker
from .kernel.topics import token, untoken
from .kernel.transport import Delivery
from .router import Router
from .state import State, Table
from .timers import due, transact

__version__ = "0.1.0"

__all__ = [
    "App",
    "Backoff",
    "Breaker",
    "BusError",
    "BusFull",
    "Client",
    "Defer",
    "Delivery",
    "DeliveryError",
    "Depends",
    "Message",
    "NoAnswerer",
    "Partial",
    "PublishFailed",
    "Reject",
    "RequestError",
    "RequestTimeout",
    "Retry",
    "Router",
    "Service",
    "Skip",
    "State",
    "Table",
    "TidingsError",
    "Topic",
    "UsageError",
    "__version__",
    "connect",
    "due",
    "token",
    "transact",
    "untoken",
]
