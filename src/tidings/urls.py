"""A bus by its URL: the scheme names the transport (entry points ``tidings.transports``)."""

from __future__ import annotations

from .kernel.errors import InvalidURL, MissingExtra, nearest
from .kernel.transport import Options

OTHERWISE = {"rabbitmq": "amqp", "jetstream": "nats", "file": "sqlite"}  # what a newcomer writes


def options_for(url: str) -> Options:
    """The options of the transport that knows this URL's scheme (entry points ``tidings.transports``).

    Raises ``InvalidURL``; ``MissingExtra`` when the transport's client is not installed.
    """
    from importlib.metadata import entry_points  # 10 ms

    scheme, separator, _ = url.partition("://")
    known = {point.name: point for point in entry_points(group="tidings.transports")}
    if not separator:
        why, mend = "a bus is named by a URL", f"write 'sqlite:///{url}' for a file, or 'memory://'"
        raise InvalidURL(f"{url!r} is no bus URL", why=why, mend=mend)
    if scheme not in known:
        why = f"installed are {', '.join(sorted(known))}"
        mend = nearest(OTHERWISE.get(scheme, scheme), known) or "write one of these"
        raise InvalidURL(f"no transport knows {scheme}://", why=why, mend=mend)
    try:
        kind: type[Options] = known[scheme].load()
    except ImportError as error:
        mend = f"pip install 'tidings[{(known[scheme].extras or [scheme])[0]}]'"
        raise MissingExtra(f"{scheme}:// needs a package that is not installed", why=str(error), mend=mend) from error
    return kind.from_url(url)
