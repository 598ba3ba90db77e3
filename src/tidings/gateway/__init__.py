"""A bus for everyone else: devices, browsers, and every language that speaks HTTP or gRPC.

``Gateway`` is what all protocols share; ``tidings serve`` and ``asgi`` put them in front of it. Each name is imported
when it is first asked for, so that nothing of a web server is loaded, or has to be installed, for a ``Gateway``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tidings.kernel.errors import MissingExtra

if TYPE_CHECKING:
    from .access import Access as Access
    from .access import Client as Client
    from .access import hashed as hashed
    from .access import new_token as new_token
    from .asgi import asgi as asgi
    from .gateway import Gateway as Gateway
    from .limits import Limits as Limits
    from .receiving import WebhookIn as WebhookIn
    from .rights import Principal as Principal
    from .rights import Rights as Rights
    from .sending import WebhookOut as WebhookOut
    from .sending import webhooks as webhooks
    from .signatures import new_secret as new_secret

_HOME: dict[str, str] = {  # name -> its module in this package
    "Access": "access",
    "asgi": "asgi",
    "Client": "access",
    "Gateway": "gateway",
    "hashed": "access",
    "Limits": "limits",
    "new_secret": "signatures",
    "new_token": "access",
    "Principal": "rights",
    "Rights": "rights",
    "WebhookIn": "receiving",
    "WebhookOut": "sending",
    "webhooks": "sending",
}

__all__ = list(_HOME)


class _Package(ModuleType):
    """Importing ``asgi.py`` binds its module here by that name; the function of the same name is what is meant."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"tidings.gateway has no {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ImportError as error:
        mend = "pip install 'tidings[serve]'"
        raise MissingExtra(f"{name} needs a package that is not installed", why=str(error), mend=mend) from None
