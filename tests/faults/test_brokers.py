"""The server behind a bus is killed, or hangs, under load: nothing accepted is lost, consuming goes on by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.engines import ENGINES, capabilities, engine_bus
from tests.faults.brokers import Attack, node_killed, paused, restarted
from tests.servers import cluster, fresh

from tidings.testing.conformance.bus import Bus, has
from tidings.testing.conformance.buses import served
from tidings.testing.faults import Fate, Group, Nemesis, Report, Scenario, perform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LAPSES = {  # seconds after which a confirmed acknowledgement outlives its server
    "nats": 3.0,  # the state of consumers is written a while later
    "postgres": 0.6,  # committed asynchronously: at most three times its wal_writer_delay of 0.2 s
}
COPIES = {"nats": "?replicas=3", "kafka": "?replication=3"}
CHAIN = (Group(name="bill", to="orders.billed"), Group(name="sink", topic="orders.billed"))


def play(engine: str, bus: Bus, folder: Path, nemesis: Nemesis, **declared: Any) -> Report:
    assert bus.url is not None
    claims = capabilities(engine)
    scenario = Scenario(
        url=bus.url(2),
        groups=CHAIN,
        messages=1200,
        pace=0.1,
        fates=(Fate(every=17, fails=2),),
        first=has(claims, "start"),
        atomic=claims.atomic_settle,
        peek=has(claims, "peek"),
        resolution=claims.delay_resolution,
        lapse=LAPSES.get(engine, 0.0),
        **declared,
    )
    report = asyncio.run(perform(scenario, folder, nemesis, seed=1, within=200))
    if not report.held:
        pytest.fail(str(report), pytrace=False)
    return report


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("attack", "seen"),
    [(restarted, "broker killed"), (paused, "broker paused")],
    ids=["killed", "paused"],
)
def test_one_server(engine: str, attack: Attack, seen: str, tmp_path: Path, record_property: Any) -> None:
    resumed: list[float] = []
    with fresh(engine) as server:
        bus = engine_bus(engine, server.url)
        evidence = play(engine, bus, tmp_path / "run", attack(server, resumed), expects=(seen,)).verdict.evidence
    if attack is restarted:  # each time is told: somebody lost it, and is back; four are there at first
        assert evidence["bus lost"] >= 3 <= evidence["bus connected"] - 4, evidence
    record_property("resumed", resumed)
    print(f"{engine} {seen}: consuming went on after {', '.join(f'{s:.2f} s' for s in resumed)}")


@pytest.mark.parametrize("engine", ["nats", "kafka"])
def test_one_node_of_three(engine: str, tmp_path: Path, record_property: Any) -> None:
    resumed: list[float] = []
    with cluster(engine) as three:
        bus = served(three.url + COPIES[engine])
        play(engine, bus, tmp_path / "run", node_killed(three.nodes, resumed), expects=("node killed",))
    record_property("resumed", resumed)
    print(f"{engine} node killed: consuming went on after {', '.join(f'{s:.2f} s' for s in resumed)}")
