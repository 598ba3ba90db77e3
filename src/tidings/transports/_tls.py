"""TLS for the brokers whose clients take a context."""

from __future__ import annotations

import ssl

from tidings.kernel.errors import BusUnavailable, InvalidOption


def secured(where: str, ca: tuple[str, str], cert: tuple[str, str], key: tuple[str, str]) -> ssl.SSLContext:
    """A context that checks the server's certificate and name; each file is an option's name and its value.

    Raises ``BusUnavailable`` when a file cannot be read, or is not what it should be, and ``InvalidOption`` as
    ``paired`` does.
    """
    paired(cert, key)
    try:
        context = ssl.create_default_context(cafile=ca[1] or None)
        if cert[1]:
            context.load_cert_chain(cert[1], key[1] or None)
    except OSError as error:  # SSLError, too
        given = ", ".join(f"{name}={file}" for name, file in (ca, cert, key) if file)
        what, mend = f"TLS for {where} cannot be set up", f"PEM files that this process can read: {given}"
        raise BusUnavailable(what, why=str(error), mend=mend) from error
    return context


def paired(cert: tuple[str, str], key: tuple[str, str]) -> None:
    """Raises ``InvalidOption`` when there is a key and no certificate: it would not be used."""
    if key[1] and not cert[1]:
        raise InvalidOption(f"{key[0]}= is for a certificate, and none is given", mend=f"{cert[0]}= names its PEM file")


def unsecured(mend: str, **files: str) -> None:
    """Raises ``InvalidOption`` when there are files of TLS for a connection without it; ``mend``: how to have it."""
    if given := [name for name, file in files.items() if file]:
        raise InvalidOption(f"{given[0]}= is for TLS, which the URL does not ask for", mend=mend)
