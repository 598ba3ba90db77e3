"""Devices: who may log in by MQTT, and what each may publish and subscribe to. Of a password only its hash is kept."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from tidings.gateway.tokens import alone, write
from tidings.kernel.errors import InvalidName, InvalidOption, MissingExtra, NotFound, UsageError, nearest
from tidings.kernel.topics import TOKEN, check_pattern, refuse_reserved

FILE = "devices.json"
ANONYMOUS = "anonymous"  # the user of who gives no name
NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
HASH = re.compile(r"\$2[abxy]\$\d{2}\$[./A-Za-z0-9]{53}")
ROUNDS = 4  # of bcrypt: a hash of 256 random bits needs no work, and thousands of devices may come at once
SESSIONS = ("$MQTT.sub.>", "$MQTT.deliver.pubrel.>")  # where the server delivers QoS 1 and 2 from


class Topics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rights of devices: patterns of topics, and nothing that is not listed. Each begins with a name.

    What they may publish is stored from the first message on, so a bus has to know its first token; and a pattern that
    begins with a wildcard would reach what belongs to the bus.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.publish, *self.subscribe):
            if refuse_reserved(check_pattern(pattern)) != pattern or not TOKEN.fullmatch(pattern.partition(".")[0]):
                why = "what a device may do is said by patterns that begin with a name"
                raise InvalidName(f"{pattern!r} is no right of a device", why=why, mend="sensors.>, commands.*.set")

    def permissions(self) -> dict[str, dict[str, list[str]]]:
        """It as the server's permissions. MQTT's ``a/#`` is ``a`` too, so whoever may read ``a.>`` may read that."""
        above = [pattern.removesuffix(".>") for pattern in self.subscribe if pattern.endswith(".>")]
        subscribe = list(dict.fromkeys([*self.subscribe, *above]))
        return {"publish": {"allow": list(self.publish)}, "subscribe": {"allow": [*subscribe, *SESSIONS]}}


class Device(Topics, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device, or a kind of device: ``name`` is MQTT's user name.

    ``password``: its bcrypt hash. ``certificate``: instead, what TLS has verified: an e-mail address or DNS name among
    the certificate's alternative names, or else its subject (``CN=meter-7,O=Example``).
    """

    name: str
    password: str = ""
    certificate: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name) or self.name == ANONYMOUS:
            mend = "letters, digits and _ . : @ -, at most 128"
            raise InvalidName(f"a device cannot be called {self.name!r}", mend=mend)
        if bool(self.password) == bool(self.certificate):
            mend = "`tidings device add NAME` makes a password"
            raise InvalidOption(f"the device {self.name!r} has either a password or a certificate", mend=mend)
        if self.password and not HASH.fullmatch(self.password):
            mend = "`tidings device add NAME` prints a new password once, and keeps its hash"
            raise InvalidOption(f"the password of {self.name!r} is no bcrypt hash", mend=mend)


def hashed(password: str) -> str:
    """What is kept of a password of ours. Raises ``MissingExtra``."""
    try:
        import bcrypt
    except ImportError as error:
        mend = "pip install 'tidings[engine]'"
        raise MissingExtra("passwords of devices need bcrypt", why=str(error), mend=mend) from None
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(ROUNDS)).decode()


def read(folder: Path) -> tuple[Device, ...] | None:
    """The devices that ``add`` wrote into an engine's folder; None where it never did: then anybody may come.

    Raises ``InvalidOption`` for a file that is damaged.
    """
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Device, ...])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UsageError as error:
        error.where = str(path)
        raise
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        mend = "mend it, or move it away and add the devices anew"
        raise InvalidOption(f"{path} cannot be read", why=str(error), mend=mend, where=str(path)) from None


def add(folder: Path, name: str, *, publish: Iterable[str] = (), subscribe: Iterable[str] = ()) -> str:
    """A new device; returns its password, which is kept nowhere. A running engine knows it within a second.

    Raises ``InvalidName``, ``InvalidOption`` (also when there is one of that name), ``MissingExtra``.
    """
    password = secrets.token_urlsafe(32)
    device = Device(name=name, password=hashed(password), publish=tuple(publish), subscribe=tuple(subscribe))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOption(f"{folder} cannot be a folder of an engine", why=str(error), mend="name another") from None
    with alone(folder / FILE):
        known = read(folder) or ()
        if name in {one.name for one in known}:
            raise InvalidOption(f"there is a device {name!r}", mend=f"`tidings device rm {name}`, or another name")
        write(folder / FILE, (*known, device))
    return password


def remove(folder: Path, name: str) -> None:
    """A device that is connected is disconnected within a second. Without any device nobody may come.

    Raises ``NotFound``.
    """
    with alone(folder / FILE):
        known = read(folder) or ()
        if name not in (names := [one.name for one in known]):
            raise NotFound(
                f"there is no device {name!r}", mend=nearest(name, names) or "`tidings device ls` lists them"
            )
        write(folder / FILE, tuple(one for one in known if one.name != name))
