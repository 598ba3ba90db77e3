"""``tidings serve``."""

from __future__ import annotations

import asyncio
import json as jsons
import logging
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tidings import App
from tidings.asyncapi.schemas import example_of
from tidings.kernel.errors import InvalidOption, MissingExtra, TidingsError
from tidings.kernel.topics import CAPTURE
from tidings.transports._url import shown

from . import show
from ._bus import Source, configured
from ._failing import tell_failures
from ._options import Json, Url, flag
from ._target import find_app

if TYPE_CHECKING:
    from tidings.gateway.server import Served
    from tidings.gateway.settings import Settings

DEFAULT = "sqlite:///tidings.db"

Config = Annotated[
    Path | None, Parameter(name="--config", help="A TOML file. Default: tidings.toml, where there is one.")
]


def serve(
    target: Annotated[str | None, Parameter(name="APP", help="An app whose handlers run here too: module:app.")] = None,
    /,
    *,
    url: Url = None,
    host: Annotated[str | None, Parameter(help="The address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, Parameter(help="The port; 0: one that is free. Default: 8080.")] = None,
    socket: Annotated[str | None, Parameter(help="A Unix socket to listen on, too.")] = None,
    grpc: Annotated[list[str] | None, Parameter(help="gRPC: host:port, or unix:path; several times.")] = None,
    engine: Annotated[str | None, Parameter(help="nats: run a NATS server here, and use it as the bus.")] = None,
    data: Annotated[str | None, Parameter(help="The folder of its data. Default: tidings-data.")] = None,
    config: Config = None,
    print_config: Annotated[bool, flag("Print what would be used, and end.")] = False,
    access_log: Annotated[bool, flag("Log each request.")] = False,
    insecure: Annotated[bool, flag("Beyond this machine: open to everybody, or without TLS.")] = False,
    json: Json = False,
) -> None:
    """Open a bus to HTTP clients, browsers, gRPC and devices, until SIGTERM or Ctrl-C.

    Each option may be in the environment (TIDINGS_SERVE_PORT) or in the file, too; docs/guides/serving.md tells all of
    them. Without any, everybody on this machine may use sqlite:///tidings.db by http://127.0.0.1:8080. SIGHUP reads the
    tokens anew.
    """
    given = {"url": url, "host": host, "port": port, "socket": socket, "grpc": grpc, "engine": engine}
    flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    flags |= {"nats": {"data": data}} if data is not None else {}
    flags |= {name: True for name, on in (("access_log", access_log), ("insecure", insecure)) if on}
    settings = settings_of(config, flags)
    app, source = _app(target, settings)
    if print_config:
        _print(settings, source, json)
        return
    _log()
    if target:
        tell_failures(app)
    try:
        _run(settings, app, source, json)
    except TidingsError:
        raise
    except asyncio.CancelledError:
        show.say("stopped before it listened") if not json else show.document({"stopped": True})
    except Exception as error:
        if target and show.user_frames(error):
            raise show.UserCodeFailed(f"serving {target} failed", error) from error
        raise


def settings_of(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The configuration; raises ``MissingExtra`` where what serves is not installed."""
    try:
        from tidings.gateway.settings import load
    except ImportError as error:
        raise missing(error) from None
    return load(config, flags, os.environ)


def missing(error: ImportError) -> MissingExtra:
    mend = "pip install 'tidings[serve]'"
    return MissingExtra("serving needs a package that is not installed", why=str(error), mend=mend)


def _app(target: str | None, settings: Settings) -> tuple[App, Source]:
    """The app whose bus is opened, and that bus: by --url, the configuration, TIDINGS_URL, a project, or the app."""
    app = find_app(target) if target else App("gateway", DEFAULT)
    if settings.engine and settings.url:
        raise InvalidOption(
            "which bus?", why=f"url is {shown(settings.url)!r}, and the engine is one", mend="leave out one"
        )
    url = settings.nats.url() if settings.engine else settings.url
    source = Source(url, "url") if url else configured(None)
    if source is None:
        return app, Source(app.urls[""], target or "the default")
    try:
        source.options()
    except MissingExtra as error:
        error.mend = "pip install 'tidings[engine]'" if settings.engine else error.mend
        raise
    app.use(source.url)
    return app, source


def _print(settings: Settings, source: Source, json: bool) -> None:
    from tidings.gateway.settings import printed, without_secrets

    told = without_secrets(settings, str(source))
    if settings.engine:
        from tidings.gateway.engine import Engine

        engine = Engine(settings.nats).print_config()
        if json:
            show.document({"settings": told, "engine": jsons.loads(engine)})
        else:
            show.say(f"{printed(told)}\n\n# The NATS server is told:\n{engine}")
    elif json:
        show.document({"settings": told})
    else:
        show.say(printed(told))


def _log() -> None:
    level = logging.getLevelNamesMapping().get(os.environ.get("TIDINGS_LOG", "INFO").upper(), logging.INFO)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def _run(settings: Settings, app: App, source: Source, json: bool) -> None:
    try:
        from tidings.gateway.server import loop_factory, serve
    except ImportError as error:
        raise missing(error) from None

    async def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):  # until it listens: nothing needs to be drained yet
            loop.add_signal_handler(number, task.cancel)
        await serve(settings, app, lambda served: _tell(served, app, source, json))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    if json:
        show.document({"stopped": True})
    else:
        show.say("stopped")


def _tell(served: Served, app: App, source: Source, json: bool) -> None:
    """Where it listens, and what to try first."""
    bus = str(source)
    if json:
        where = {"http": served.http, "grpc": served.grpc, "engine": served.engine, "bus": bus}
        show.document({**where, "pid": os.getpid(), "handlers": len(app.registrations)})
        return
    show.say(f"{show.styled('tidings serve', show.BOLD)} opens {bus} (process {os.getpid()})")
    for url in served.http:
        show.say(f"  HTTP, WebSocket  {url}")
    for address in served.grpc:
        show.say(f"  gRPC             {address}")
    for kind, address in served.engine.items():
        show.say(f"  {kind:<16} {address}")
    if app.registrations:
        show.say(f"  handlers         {len(app.registrations)} of {app.name}")
    url, (topic, body) = served.http[0], _example(app)
    token = " -H 'Authorization: Bearer TOKEN'" if served.closed else ""
    show.say("Try, in other terminals:")
    show.say(f"  curl -N{token} {shlex.quote(f'{url}/topics/>')}")
    show.say(f"  curl{token} {url}/topics/{topic} --json {shlex.quote(body)}")
    if not served.closed:
        show.say(f"  open {url}/ in a browser")


def _example(app: App) -> tuple[str, str]:
    """A topic, and a message that its handler takes."""
    for r in app.registrations:
        if r.role == "on" and not r.bus and not r.pattern.startswith("_") and ">" not in r.pattern:
            topic = CAPTURE.sub(r"\1", r.template).replace("*", "any")
            if (body := example_of(r.plan.type, lax=r.lax)) is not None:
                return topic, body if r.plan.type is not str else f'"{body}"'
    return "hello.world", '{"text": "hello"}'
