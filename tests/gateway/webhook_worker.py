"""A sender of webhooks to be killed: ``python -m tests.gateway.webhook_worker <bus> <target> <secret>``."""

from __future__ import annotations

import asyncio
import sys

from tidings import App
from tidings.gateway.sending import WebhookOut, webhooks


def main(url: str, target: str, secret: str) -> None:
    app = App("shop", url)
    hook = WebhookOut(name="billing", pattern="orders.>", url=target, secrets=(secret,), private=True, first="50ms")
    webhooks(app, [hook])
    asyncio.run(app.serve(lambda: print("ready", flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
