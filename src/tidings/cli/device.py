"""``tidings device``: MQTT devices that may come to ``tidings serve --engine nats``, and what each may do."""

from __future__ import annotations

import getpass
import logging
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from tidings.kernel.errors import InvalidOption

from . import show
from ._options import Json
from .serve import Config, settings_of

app = cyclopts.App(name="device", help="MQTT devices of `tidings serve --engine nats`: add, list, remove.")

audit = logging.getLogger("tidings.audit")

Patterns = Annotated[list[str] | None, Parameter(negative=())]
Data = Annotated[Path | None, Parameter(name="--data", help="The engine's folder. Default: as `tidings serve` has it.")]


@app.command
def add(
    name: Annotated[str, Parameter(help="Its MQTT user name.")],
    /,
    *,
    publish: Annotated[
        Patterns, Parameter(help="Topics it may publish: a pattern, as sensors.a.>; several times.")
    ] = None,
    subscribe: Annotated[Patterns, Parameter(help="Topics it may subscribe to.")] = None,
    data: Data = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a password for a device, and print it: this once, for only its hash is kept.

    What is not given may not be done. An engine that runs takes it within a second.
    """
    from tidings.gateway.engine import devices

    if not publish and not subscribe:
        mend = f"tidings device add {name} --publish 'sensors.{name}.>' --subscribe 'commands.{name}.>'"
        raise InvalidOption(f"{name!r} may do nothing", why="no right was given", mend=mend)
    folder = _folder(data, config)
    password = devices.add(folder, name, publish=publish or (), subscribe=subscribe or ())
    _audited("added", name, folder)
    if json:
        rights = {"publish": publish or [], "subscribe": subscribe or []}
        show.document({"name": name, "password": password, **rights, "folder": str(folder)})
    else:
        show.say(password)
        show.note(f"it is shown this once; its hash is in {folder / devices.FILE}. MQTT's user name is {name}")


@app.default
@app.command(name="ls")
def ls(*, data: Data = None, config: Config = None, json: Json = False) -> None:
    """List the devices, and what each may do."""
    from tidings.gateway.engine import devices

    folder = _folder(data, config)
    known = devices.read(folder) or ()
    if json:
        show.document([{"name": d.name, "publish": d.publish, "subscribe": d.subscribe} for d in known])
    elif known:
        rows = [(device.name, ", ".join(device.publish), ", ".join(device.subscribe)) for device in known]
        show.table(("name", "publish", "subscribe"), rows)
    else:
        show.note(f"no devices in {folder}: `tidings device add NAME` makes one")


@app.command
def rm(
    name: Annotated[str, Parameter(help="Its MQTT user name.")],
    /,
    *,
    data: Data = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Let a device in no more. One that is connected is disconnected within a second."""
    from tidings.gateway.engine import devices

    folder = _folder(data, config)
    devices.remove(folder, name)
    _audited("removed", name, folder)
    if json:
        show.document({"removed": name, "folder": str(folder)})
    else:
        show.say(f"removed {name}")


def _folder(data: Path | None, config: Path | None) -> Path:
    return data or settings_of(config, {}).nats.folder


def _audited(done: str, name: str, folder: Path) -> None:
    """Who did what, when: to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    audit.info("%s %s the device %s in %s", getpass.getuser(), done, name, folder)
