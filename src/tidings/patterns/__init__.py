"""Enterprise Integration Patterns, one file each, named as in the book (Hohpe and Woolf, 2003).

Most of the 65 are plain handlers, topics and options: `docs/patterns` says which. What is here has state, concurrency
or bookkeeping that is hard to get right by hand. Each is imported when it is first asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._commands import Done as Done
    from ._commands import Level as Level
    from ._commands import Rate as Rate
    from ._commands import Switch as Switch
    from ._slip import Slip as Slip
    from ._slip import slip_of as slip_of
    from .aggregator import aggregator as aggregator
    from .canonical import Schema as Schema
    from .channel_purger import purge as purge
    from .channel_purger import purge_dead as purge_dead
    from .claim_check import Blobs as Blobs
    from .claim_check import ClaimCheck as ClaimCheck
    from .claim_check import FolderBlobs as FolderBlobs
    from .claim_check import FsspecBlobs as FsspecBlobs
    from .claim_check import SharedBlobs as SharedBlobs
    from .composed_message_processor import composed_message_processor as composed_message_processor
    from .content_enricher import Lookup as Lookup
    from .control_bus import ControlBus as ControlBus
    from .control_bus import audit as audit
    from .control_bus import command as command
    from .debounce import debounce as debounce
    from .detour import Detour as Detour
    from .dynamic_router import Rule as Rule
    from .dynamic_router import dynamic_router as dynamic_router
    from .envelope_wrapper import EnvelopeWrapper as EnvelopeWrapper
    from .envelope_wrapper import compressed as compressed
    from .envelope_wrapper import encrypted as encrypted
    from .envelope_wrapper import signed as signed
    from .file_adapter import watch_files as watch_files
    from .file_writer import write_files as write_files
    from .http_poller import poll_http as poll_http
    from .load_balancer import load_balancer as load_balancer
    from .message_history import MessageHistory as MessageHistory
    from .message_history import history as history
    from .message_sequence import Position as Position
    from .message_sequence import position as position
    from .message_sequence import sequenced as sequenced
    from .message_store import MessageStore as MessageStore
    from .messaging_bridge import bridge as bridge
    from .messaging_gateway import gateway as gateway
    from .normalizer import Normalizer as Normalizer
    from .normalizer import normalizer as normalizer
    from .polling_consumer import PollingConsumer as PollingConsumer
    from .polling_consumer import polling_consumer as polling_consumer
    from .process_manager import Process as Process
    from .process_manager import ProcessManager as ProcessManager
    from .recipient_list import multicast as multicast
    from .recipient_list import recipient_list as recipient_list
    from .resequencer import resequencer as resequencer
    from .retry_budget import RetryBudget as RetryBudget
    from .routing_slip import RoutingSlip as RoutingSlip
    from .sampler import Sampler as Sampler
    from .sampler import sample_every as sample_every
    from .sampler import sample_interval as sample_interval
    from .sampler import sample_keys as sample_keys
    from .scatter_gather import answer as answer
    from .scatter_gather import ask_all as ask_all
    from .scatter_gather import scatter_gather as scatter_gather
    from .smart_proxy import Exchange as Exchange
    from .smart_proxy import SmartProxy as SmartProxy
    from .splitter import splitter as splitter
    from .sql_poller import poll_sql as poll_sql
    from .subprocess_adapter import run_process as run_process
    from .subprocess_feeder import feed_process as feed_process
    from .test_message import Probe as Probe
    from .test_message import carry_probes as carry_probes
    from .test_message import is_probe as is_probe
    from .throttle import SharedThrottle as SharedThrottle
    from .throttle import Throttle as Throttle
    from .windows import Session as Session
    from .windows import Since as Since
    from .windows import Sliding as Sliding
    from .windows import Tumbling as Tumbling
    from .windows import Window as Window
    from .windows import windowed as windowed
    from .wire_tap import WireTap as WireTap

_HOME: dict[str, str] = {  # name -> its module in this package
    "aggregator": "aggregator",
    "answer": "scatter_gather",
    "ask_all": "scatter_gather",
    "audit": "control_bus",
    "Blobs": "claim_check",
    "bridge": "messaging_bridge",
    "carry_probes": "test_message",
    "ClaimCheck": "claim_check",
    "command": "control_bus",
    "composed_message_processor": "composed_message_processor",
    "compressed": "envelope_wrapper",
    "ControlBus": "control_bus",
    "debounce": "debounce",
    "Detour": "detour",
    "Done": "_commands",
    "dynamic_router": "dynamic_router",
    "encrypted": "envelope_wrapper",
    "EnvelopeWrapper": "envelope_wrapper",
    "Exchange": "smart_proxy",
    "feed_process": "subprocess_feeder",
    "FolderBlobs": "claim_check",
    "FsspecBlobs": "claim_check",
    "gateway": "messaging_gateway",
    "history": "message_history",
    "is_probe": "test_message",
    "Level": "_commands",
    "load_balancer": "load_balancer",
    "Lookup": "content_enricher",
    "MessageHistory": "message_history",
    "MessageStore": "message_store",
    "multicast": "recipient_list",
    "Normalizer": "normalizer",
    "normalizer": "normalizer",
    "poll_http": "http_poller",
    "poll_sql": "sql_poller",
    "polling_consumer": "polling_consumer",
    "PollingConsumer": "polling_consumer",
    "Position": "message_sequence",
    "position": "message_sequence",
    "Probe": "test_message",
    "Process": "process_manager",
    "ProcessManager": "process_manager",
    "purge": "channel_purger",
    "purge_dead": "channel_purger",
    "Rate": "_commands",
    "recipient_list": "recipient_list",
    "resequencer": "resequencer",
    "RetryBudget": "retry_budget",
    "RoutingSlip": "routing_slip",
    "Rule": "dynamic_router",
    "run_process": "subprocess_adapter",
    "sample_every": "sampler",
    "sample_interval": "sampler",
    "sample_keys": "sampler",
    "Sampler": "sampler",
    "scatter_gather": "scatter_gather",
    "Schema": "canonical",
    "sequenced": "message_sequence",
    "Session": "windows",
    "SharedBlobs": "claim_check",
    "SharedThrottle": "throttle",
    "signed": "envelope_wrapper",
    "Since": "windows",
    "Sliding": "windows",
    "Slip": "_slip",
    "slip_of": "_slip",
    "SmartProxy": "smart_proxy",
    "splitter": "splitter",
    "Switch": "_commands",
    "Throttle": "throttle",
    "Tumbling": "windows",
    "watch_files": "file_adapter",
    "Window": "windows",
    "windowed": "windows",
    "WireTap": "wire_tap",
    "write_files": "file_writer",
}

__all__ = list(_HOME)


class _Package(ModuleType):
    """Importing ``splitter.py`` binds its module here by that name; the function of the same name is what is meant."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"tidings.patterns has no {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
