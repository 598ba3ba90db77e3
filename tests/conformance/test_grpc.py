"""``grpc://`` passes the suite, over an embedded bus that another process serves, and holds under faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.serving import Served

from tidings.testing.conformance import Bus, Conformance, Faults

pytestmark = pytest.mark.slow


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    served = Served(f"sqlite:///{tmp_path}/bus.db", sync="normal")
    yield served.bus()
    served.close()


class TestGRPC(Conformance): ...


@pytest.mark.timeout(180)
class TestGRPCFaults(Faults):
    """Members are killed; ``tests/transports/grpc`` kills the server."""
