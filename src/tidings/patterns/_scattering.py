"""What goes out of one message to come back as one: asked at once, and opened as a group that waits for the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tidings.channels import Topic
from tidings.kernel.clock import current_clock
from tidings.kernel.codec import decoder
from tidings.kernel.errors import Undecodable
from tidings.kernel.message import Message, new_id
from tidings.router import Router
from tidings.state import State, Table

from ._aggregation import Aggregation, install
from ._around import keeping
from ._completion import Completion, completion
from ._grouping import Group, Listed, Open
from ._options import choices, refuse_unknown
from ._pattern import describe
from .message_sequence import Position, placed, position

A = TypeVar("A")

RETURN = "return-address"
PASSED = ("start", "backoff", "breaker")  # to app.on


class Scattering(Struct, frozen=True, kw_only=True):
    """``ask``: from a message to the drafts that go out. Their answers come at ``replies`` and are gathered."""

    group: str
    ask: Callable[[Message[Any]], Iterable[Message[Any]]]
    replies: Topic[Any]
    gathering: Aggregation

    async def scatter(self, message: Message[Any], state: State) -> list[Message[Any]]:
        """Send what there is to send, once, and wait for as many answers; without any, that is the outcome."""
        gathering, now = self.gathering, current_clock().now()
        if (known := await state.get(gathering.table, message.id)) is not None:
            state.put(
                gathering.table, message.id, known, due=gathering.rules.due(now, now)
            )  # it must be as it was read
            return []
        sent = list(self.ask(message))
        group = Group(message.id, Open(new_id(), message.correlation_id or message.id, now, key=message.key))
        if not sent:
            await gathering.kept.load([group], state)
            return await gathering.become(group, "complete")
        state.put(gathering.table, message.id, gathering.kept.write(group), due=gathering.rules.due(now, now))
        return [self._sent(draft, Position(message.id, number, len(sent))) for number, draft in enumerate(sent)]

    def _sent(self, draft: Message[Any], at: Position) -> Message[Any]:
        draft = placed(draft, at)
        return replace(draft, headers=(*(draft.headers or ()), (RETURN, self.replies.name)))

    def register(
        self, app: Router, source: Topic[Any], pattern: str, publishes: Iterable[Topic[Any]], passed: Any
    ) -> None:
        """What scatters, and what gathers."""

        scatter = keeping(self.gathering.fn, self.scatter, Message[source.type])  # type: ignore[name-defined]
        app.on(source, group=self.group, **passed)(describe(scatter, pattern, publishes=publishes))
        install(app, self.replies, self.gathering, passed)


def rules_of(options: dict[str, Any], known: Sequence[str], what: str) -> tuple[Completion, dict[str, Any], str]:
    """The rules by which answers are awaited, what goes on to ``app.on``, and the group. Raises ``InvalidOption``."""
    given = {"late": "drop", **options}
    refuse_unknown(given, (*known, *PASSED, "group"), what)
    choices(given, late=("drop", "dead"))
    passed = {name: given.pop(name) for name in PASSED if name in given}
    return completion(given), passed, given.get("group", "")


def gatherer(
    fn: Callable[[Any], Any], group: str, replies: Topic[Any], to: Topic[Any], rules: Completion, until: Any = None
) -> Aggregation:
    """What gathers the answers that ``group`` has asked for."""
    decode = decoder(replies.type, lax=replies.lax)
    return Aggregation(
        fn=fn,
        to=to,
        group=f"{group}-gather",
        rules=rules,
        kept=Listed(f"{group}.items", decode, looks=until is not None, numbered=True),
        table=Table(f"{group}.open", bytes),
        until=until,
        awaited=True,
    )


def answer(message: Message[Any], draft: Message[A], /) -> Message[A]:
    """What is published as the answer to a message that a scatter-gather or a composed message processor sent:
    ``return answer(message, quotes(Quote(...)))``.

    Raises ``Undecodable`` if another sent it.
    """
    place = position(message)
    if place is None:
        mend = "answer what scatter_gather or composed_message_processor sent"
        raise Undecodable(f"message {message.id} wants no answer", mend=mend)
    return replace(placed(draft, place), correlation_id=message.correlation_id)
