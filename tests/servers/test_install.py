"""Installing what is missing: apt-get without services, Maven into a cache."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from tests.servers import Missing, Server, install, java


class Absent(Server):
    name = "absent"
    packages = ("absent-server",)
    there: ClassVar[bool] = False

    @classmethod
    def program(cls) -> str:
        if not cls.there:
            raise Missing("absent is missing")
        return "absent"


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were run, in place of running them: the first install fails, as with old lists."""
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        assert install.POLICY.read_text() == "#!/bin/sh\nexit 101\n"
        ran.append(command[1:2])
        Absent.there = len(ran) == 3
        return int(len(ran) == 1)

    monkeypatch.setattr(install, "POLICY", tmp_path / "policy")
    monkeypatch.setattr(install, "run", run)
    monkeypatch.setattr("os.getuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Absent, "there", False)
    return ran


def test_packages_come_without_services(apt: list[list[str]]) -> None:
    install.install([Absent])
    assert apt == [["install"], ["update"], ["install"]]
    assert not install.POLICY.exists()


def test_what_is_there_costs_nothing(apt: list[list[str]]) -> None:
    Absent.there = True
    install.install([Absent])
    assert apt == []


def test_who_may_not_install_is_told_what_to_do(apt: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)
    with pytest.raises(Missing, match=r"as root: apt-get install absent-server"):
        install.install([Absent])


@pytest.mark.slow
def test_maven_fills_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(java, "CACHE", tmp_path)
    assert not install.here(java.Artemis)
    install.install([java.Artemis])
    assert install.here(java.Artemis)
    assert [path.name for path in tmp_path.iterdir()] == [java.Artemis.jars().name]
    assert (java.Artemis.jars() / "Artemis.class").exists()
