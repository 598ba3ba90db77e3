"""``tidings pause``, ``resume`` and ``concurrency``: orders to the processes of an app, while they run."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import Parameter
from msgspec import to_builtins
from msgspec.structs import replace

from tidings import App
from tidings.control import CONTROL, HOST, MOST, PAGE, Answer, Order, draft, remembers, said
from tidings.kernel.errors import InvalidOption, NoAnswerer, RequestTimeout, Unsupported
from tidings.kernel.message import seconds
from tidings.kernel.topics import TICK, check_pattern
from tidings.kernel.transport import GroupInfo, Subscription

from . import show
from ._bus import Source, find_source, inspectable, opened
from ._options import DryRun, Json, Url
from .groups import unknown

LINGER = 0.5  # seconds

Group = Annotated[str, Parameter(name="GROUP", help="shop.bill, or shop.> for all of an app.")]
Wait = Annotated[str, Parameter(name="--wait", help="How long to wait for answers.")]


def pause(group: Group, /, *, wait: Wait = "3s", dry_run: DryRun = False, url: Url = None, json: Json = False) -> None:
    """Let a group's handler start nothing, in every process, until it is resumed.

    What runs is finished; what has not started goes back to the bus, uncounted, and waits there. Processes that start
    later stay paused too. Exit code 4: a process did not answer.
    """
    asyncio.run(_order(find_source(url), Order(group=group, paused=True), wait, dry_run, json))


def resume(group: Group, /, *, wait: Wait = "3s", dry_run: DryRun = False, url: Url = None, json: Json = False) -> None:
    """Let a paused group's handler go on, in every process. Exit code 4: a process did not answer."""
    asyncio.run(_order(find_source(url), Order(group=group, paused=False), wait, dry_run, json))


def concurrency(
    group: Group,
    number: Annotated[str, Parameter(name="N", help="Messages at once in each process; default: as its code says.")],
    /,
    *,
    wait: Wait = "3s",
    dry_run: DryRun = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Set how many messages a group's handler takes at once, in every process; also in those that start later.

    What runs is not interrupted. Exit code 4: a process did not answer.
    """
    order = Order(group=group, concurrency=_number(number))
    asyncio.run(_order(find_source(url), order, wait, dry_run, json))


def _number(text: str) -> int:
    if text == "default":
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        mend = f"a number from 1 to {MOST:,}, or default; `tidings pause` for none"
        raise InvalidOption(f"a concurrency cannot be {text!r}", mend=mend)
    return int(text)


async def _order(source: Source, order: Order, wait: str, dry_run: bool, json: bool) -> None:
    pattern, timeout = check_pattern(order.group), seconds(wait, "--wait")
    async with opened(source) as app:
        bus = inspectable(app.bus())
        groups = await bus.groups(pattern)
        if not groups:
            raise await unknown(bus, pattern)
        if order.concurrency is not None:
            groups = _without_ticks(groups)
        orders = [replace(order, group=group.name, by=_user()) for group in groups]
        answers = list[Answer]()
        if not dry_run:
            for name in sorted({group.app for group in groups}):
                members = {group.name: group.members for group in groups if group.app == name}
                mine = [each for each in orders if each.group in members]
                answers += await _tell(app, name, mine, members, timeout)
        _print(orders, groups, answers, dry_run, json)
        if not dry_run:
            _check(groups, answers, wait, recorded=remembers(app.bus()))


def _without_ticks(groups: Sequence[GroupInfo]) -> list[GroupInfo]:
    """Ticks are handled one by one, whatever is ordered."""
    left = [group for group in groups if not group.pattern.startswith(TICK)]
    if not left:
        what = f"the concurrency of {groups[0].name} cannot be changed"
        raise Unsupported(
            what, why="it is a schedule, whose ticks are handled one by one", mend="pause it, if you like"
        )
    return left


def _user() -> str:
    """Who we are, for the record."""
    try:
        return f"{getpass.getuser()}@{HOST}"
    except (OSError, KeyError):  # a container whose user has no name
        return f"{os.getuid()}@{HOST}"


async def _tell(
    app: App, name: str, orders: Sequence[Order], members: Mapping[str, int], timeout: float
) -> list[Answer]:
    """What the processes of the app called ``name`` answer within ``timeout`` seconds, or until all members have.

    A process that was paused before it asked for a message is no member to a bus without records, and answers too: so
    there the answers end when no more have come for a while.
    """
    drafts, answers = [draft(name, order) for order in orders], list[Answer]()
    missing = {message.id: max(members[order.group], 1) for message, order in zip(drafts, orders, strict=True)}
    consumer = await app.bus().subscribe(Subscription(app=app.name, pattern=CONTROL + name))
    timer = asyncio.get_running_loop().call_later(timeout, consumer.stop)
    try:
        await app.publish_many(drafts)
        while batch := await consumer.receive(PAGE):
            for message in (delivery.message for delivery in batch):
                if message.correlation_id in missing and isinstance(answer := said(message), Answer):
                    missing[message.correlation_id] -= 1
                    answers.append(answer)
            if not any(left > 0 for left in missing.values()):
                if remembers(app.bus()):
                    break
                timer.cancel()
                timer = asyncio.get_running_loop().call_later(LINGER, consumer.stop)
    finally:
        timer.cancel()
        consumer.stop()
        await consumer.close()
    return answers


def _print(
    orders: Sequence[Order], groups: Sequence[GroupInfo], answers: Sequence[Answer], dry_run: bool, json: bool
) -> None:
    if json:
        show.document({"orders": to_builtins(orders), "sent": not dry_run, "answers": to_builtins(answers)})
    elif dry_run:
        for order, group in zip(orders, groups, strict=True):
            where = "1 process" if group.members == 1 else f"{group.members} processes"
            show.say(f"would {_told(order)} in {where}")
    elif answers:
        rows = [[a.group, f"{a.host}:{a.pid}", _state(a), str(a.concurrency)] for a in answers]
        show.table(("group", "process", "now", "concurrency"), sorted(rows), right=("concurrency",))


def _told(order: Order) -> str:
    if order.paused is not None:
        return f"{'pause' if order.paused else 'resume'} {order.group}"
    return f"set the concurrency of {order.group} to {order.concurrency or 'what its code says'}"


def _state(answer: Answer) -> str:
    state = "paused" if answer.paused else "running"
    return f"{state}: {answer.why}" if answer.why else state


def _check(groups: Sequence[GroupInfo], answers: Sequence[Answer], wait: str, *, recorded: bool) -> None:
    """Say who did not answer, and what becomes of the order; raises ``NoAnswerer``, ``RequestTimeout``."""
    if not recorded:
        show.note("this bus keeps no record of orders: when no process of the app is left, they are forgotten")
    why = "the order is recorded: a process that starts later obeys it" if recorded else "the order is not recorded"
    counts = {group.name: (sum(a.group == group.name for a in answers), group.members) for group in groups}
    silent = [name for name, (answered, _) in counts.items() if not answered]
    if silent:
        what = f"no process of {', '.join(silent)} has answered"
        raise NoAnswerer(what, why=why, mend="`tidings run` starts one; --wait waits longer")
    late = [f"{m - n} of {m} processes of {name}" for name, (n, m) in counts.items() if n < m]
    if late:
        mend = "look at `tidings groups`, and try again: a process that has died counts until its lease has passed"
        raise RequestTimeout(f"{', '.join(late)} did not answer within {wait}", why=why, mend=mend)
