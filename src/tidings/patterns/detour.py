"""Messages take a way through extra steps, switched while the system runs (EIP: Detour).

    detour = Detour(app, orders, to=checked, via=inspection)
    ControlBus(app).switch("inspect", detour.turn)

The control bus turns it in all processes, and in those that start later. Whoever handles ``via`` publishes to ``to`` in
the end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from tidings.channels import Topic
from tidings.kernel.message import Message
from tidings.router import Router

from ._forward import forward, named, one_topic
from ._pattern import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tidings._decorators import Durable

log = logging.getLogger("tidings")

T = TypeVar("T")


class Detour:
    """Passes each message of ``source`` on to ``to``, or, while it is ``on``, to ``via``.

    What is passed on and the settlement of what came are one transaction where the bus can. ``on``: how it begins.
    Body, key, headers and expiration stay as they are. Its group is called after the source unless ``group`` is given;
    ``options`` as of ``app.on``. Raises ``InvalidOption``.
    """

    def __init__(
        self,
        app: Router,
        source: Topic[T],
        /,
        *,
        to: Topic[T],
        via: Topic[T],
        on: bool = False,
        **options: Unpack[Durable],
    ) -> None:
        self.to, self.via, self.on = one_topic(to, "to"), one_topic(via, "via"), on
        self.name = source.template

        async def detour(message: Message[Any]) -> Message[Any]:
            return forward(message, self.via if self.on else self.to)

        subscribe: Any = app.on
        subscribe(source, **options)(describe(named(detour, "detour", source), "detour", publishes=(to, via)))

    def turn(self, on: bool) -> None:
        """Switch it in this process: what ``ControlBus.switch`` shall call."""
        if on != self.on:
            log.info("the detour of %s by %s is %s", self.name, self.via.name, "on" if on else "off")
        self.on = on
