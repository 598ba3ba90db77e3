"""Reading the machine the tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import psutil  # type: ignore[import-untyped]
import pytest

from tidings import Topic
from tidings.demo import sensors
from tidings.demo.app import readings
from tidings.demo.sensors import HOST, Machine, Measured, Reading, per_second, uptime


def test_every_reading_can_be_published() -> None:
    machine = Machine()
    taken = machine.measure()
    assert {"core-0.load", "memory.used"} <= {reading.series for reading in taken}
    for reading in taken:
        topic: Topic[Reading] = readings.bind(host=HOST, device=reading.device, quantity=reading.quantity)
        assert topic.name.startswith(f"sensors.{HOST}.")


def test_a_machine_without_some_sensors_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_io_counters", lambda perdisk: None)
    monkeypatch.setattr(psutil, "net_io_counters", lambda pernic: {})
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    devices = {reading.device.partition("-")[0] for reading in Machine().measure()}
    assert "memory" in devices
    assert devices.isdisjoint({"disk", "net", "chip"})


def test_a_device_that_fails_is_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def dying() -> Iterator[list[Measured]]:
        yield []
        raise OSError("unplugged")

    monkeypatch.setattr(sensors, "memory", dying)
    machine = Machine()
    before = len(machine.devices)
    assert machine.measure()
    assert len(machine.devices) == before - 1


def test_counters_become_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0])
    totals = iter([{"disk-a": (1000, 50)}, {"disk-a": (5000, 50), "disk-new": (9, 9)}])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    device = per_second(lambda: next(totals), ("read", "written"))
    assert next(device) == []
    assert next(device) == [("disk-a", "read", "B/s", 2000.0), ("disk-a", "written", "B/s", 0.0)]


def test_the_old_device_tears_the_third_line_and_then_every_tenth() -> None:
    lines = list(islice(uptime(), 23))
    assert [number for number, line in enumerate(lines, 1) if line.count(",") < 3] == [3, 13, 23]
