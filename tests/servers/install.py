"""Fetches what is missing: packages by apt-get, Java's servers by Maven. What is there already costs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import Missing, Server, binary
from .java import HERE, Java

POLICY = Path("/usr/sbin/policy-rc.d")


def install(kinds: Iterable[type[Server]]) -> None:
    """Raises ``Missing`` with what to do by hand."""
    lacking = [kind for kind in kinds if not here(kind)]
    java: list[type[Java]] = [kind for kind in lacking if issubclass(kind, Java)]
    packages = {package for kind in lacking for package in kind.packages}
    if java and all(map(shutil.which, ("java", "javac", "mvn"))):
        packages -= set(Java.packages)
    if not shutil.which("openssl"):
        packages.add("openssl")
    if packages:
        debian(sorted(packages))
    for each in java:
        maven(each)
    for kind in lacking:
        kind.program()


def here(kind: type[Server]) -> bool:
    try:
        kind.program()
    except Missing:
        return False
    return True


def debian(packages: list[str]) -> None:
    by_hand = f"apt-get install {' '.join(packages)}"
    if os.getuid() or not shutil.which("apt-get"):
        raise Missing(f"as root: {by_hand}")
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    with no_services():
        if run(command) and (run(["apt-get", "update", "-qq"]) or run(command)):
            raise Missing(f"this failed: {by_hand}")


@contextmanager
def no_services() -> Iterator[None]:
    """Packages would start services of their own on the usual ports: a policy of "never" forbids that."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink()


def maven(kind: type[Java]) -> None:
    """The class path of the profile of that name in pom.xml; complete, or not there."""
    done = kind.jars()
    made = done.with_name(f"{done.name}.{os.getpid()}")
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={made}", "-DincludeScope=runtime"]
    try:
        if run([binary("mvn"), "-q", "-B", "-f", str(HERE / "pom.xml"), "-P", kind.name, *goal]):
            raise Missing(f"Maven did not fetch {kind.name}: mvn -f tests/servers/pom.xml -P {kind.name} {goal[0]}")
        if (source := HERE / f"{kind.__name__}.java").exists() and run(
            [binary("javac"), "-cp", f"{made}/*", "-d", str(made), str(source)]
        ):
            raise Missing(f"javac refused {source}")
        if not done.exists():
            made.rename(done)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def run(command: list[str]) -> int:
    """Its exit code; what it says is shown if that is not 0."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        print(done.stdout.decode(errors="replace"))
    return done.returncode
