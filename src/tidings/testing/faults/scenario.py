"""What a run is, declared: a bus, groups, processes, messages, and what shall become of some of them.

It is data: workers get it as JSON, the checker judges by it.
"""

from __future__ import annotations

from msgspec import Struct

from tidings.kernel.message import derived_id

APP = "faults"
PLACED = "orders.placed"
POISONED = 3  # the exit status of a process whose message "dies"


class Group(Struct, frozen=True, kw_only=True):
    """A group, and what its handler is: it takes ``takes`` seconds, and returns a message to the topic ``to``, if any.

    ``batch``: it is called with lists. ``thread``: it is a plain function.
    """

    name: str
    topic: str = PLACED
    to: str = ""
    ordered: bool = False
    batch: int = 0
    thread: bool = False
    concurrency: int = 8
    takes: float = 0.002
    timeout: float = 3600.0

    @property
    def full(self) -> str:
        """Its name on the bus."""
        return f"{APP}.{self.name}"


class Fate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What becomes of the messages ``at`` these numbers, and of every ``every``-th, in a group (default: in all)."""

    group: str = ""
    at: tuple[int, ...] = ()
    every: int = 0
    fails: int = 0  # so many attempts raise
    retry: float = 0.0  # seconds it asks for between attempts; 0: the app's backoff
    rejects: bool = False
    dies: bool = False  # each attempt ends its process
    hangs: float = 0.0  # seconds that it takes more, the first time in each process
    blocks: float = 0.0  # seconds for which it blocks its thread, the first time in each process

    def meant(self, group: str, n: int) -> bool:
        chosen = n in self.at or (self.every > 0 and n % self.every == self.every - 1)
        return chosen and self.group in ("", group)


HANDLED = Fate()


class Scenario(Struct, frozen=True, kw_only=True):
    """A declared run.

    Message n of ``messages`` is published by publisher ``n * publishers // messages``; its key is the publisher's own,
    so that keys have an order. ``pace``: seconds between batches; ``burst``: so many come at once, and then a pause as
    long. Message n has priority n % ``priorities``, if any. Every ``delayed``-th message is delayed by ``delay``
    seconds. ``points``: fail points by process (``p0``, ``p1`` … publish, ``c0``, ``c1`` … consume), a plan for its
    first start, one for its second, and so on. ``backlog``: consumers start when everything is published, all at the
    same moment.

    What the bus claims decides what is checked: ``first`` (groups may start at the first message), ``atomic`` (outputs
    and settlement at once), ``peek`` (it can be looked into), ``resolution`` of delays, ``lapse`` (seconds
    of settlements that its broker forgets when it is killed: it stores them later). ``expects``: the evidence
    without which the run is inconclusive (``checker.evidence``). ``steps``: the clock is stepped, so that what is early
    is right if the bus reported the step. ``mutant``: what the transports of the processes shall break.
    """

    url: str
    groups: tuple[Group, ...] = (Group(name="bill"),)
    publishers: int = 2
    consumers: int = 2
    messages: int = 200
    keys: int = 4  # of each publisher
    batch: int = 5
    pace: float = 0.01
    burst: int = 1
    priorities: int = 0
    size: int = 100  # bytes of a body, about
    delayed: int = 0
    delay: float = 0.3
    fates: tuple[Fate, ...] = ()
    attempts: int = 8
    points: dict[str, tuple[str, ...]] = {}  # msgspec copies it
    backlog: bool = False
    first: bool = True
    atomic: bool = True
    peek: bool = True
    resolution: float = 0.02
    lapse: float = 0.0
    expects: tuple[str, ...] = ()
    steps: bool = False
    restarts: int = 40  # of one process, before the run gives up
    mutant: str = ""

    def share(self, publisher: int) -> range:
        """The numbers that a publisher publishes."""
        return range(
            -(-publisher * self.messages // self.publishers), -(-(publisher + 1) * self.messages // self.publishers)
        )

    def key(self, n: int) -> str:
        return f"p{n * self.publishers // self.messages}k{n % self.keys}"

    def fate(self, group: str, n: int) -> Fate:
        """The first that is meant."""
        return next((fate for fate in self.fates if fate.meant(group, n)), HANDLED)

    def dead(self, group: str, n: int) -> str:
        """Why message n ends in the dead letters of a group; "": it does not."""
        fate = self.fate(group, n)
        reasons = (("rejected", fate.rejects), ("crashed", fate.dies), ("failed", fate.fails >= self.attempts))
        return next((reason for reason, so in reasons if so), "")

    def reaches(self, group: Group, n: int) -> str:
        """The id that message n has in a group; "": it does not get there."""
        feeder = next((other for other in self.groups if other.to and other.to == group.topic), None)
        if feeder is None:
            return id_of(n)
        parent = self.reaches(feeder, n)
        sent = parent and not self.dead(feeder.name, n)
        return derived_id(parent, feeder.full, group.topic, 0) if sent else ""

    def is_delayed(self, n: int) -> bool:
        return self.delayed > 0 and n % self.delayed == self.delayed - 1


def id_of(n: int) -> str:
    return f"m{n:06d}"


class Spec(Struct, frozen=True, kw_only=True):
    """One process of a run: a publisher of the numbers ``first`` to ``last``, or a consumer.

    ``held``: it waits for a line on its standard input before it opens the bus.
    """

    scenario: Scenario
    role: str
    name: str
    journal: str  # its file
    first: int = 0
    last: int = 0
    held: bool = False


class Body(Struct):
    """What travels."""

    n: int
    filler: str = ""
