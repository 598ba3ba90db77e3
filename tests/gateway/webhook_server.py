"""A receiver of webhooks to be killed: ``python -m tests.gateway.webhook_server <bus> <port> <secret>``."""

from __future__ import annotations

import sys

import uvicorn

from tidings.gateway.asgi import asgi
from tidings.gateway.receiving import WebhookIn


def main(url: str, port: str, secret: str) -> None:
    hook = WebhookIn(name="standard", topic="partner.events", secrets=(secret,))
    uvicorn.run(asgi(url, webhooks_in=[hook]), port=int(port), log_config=None, access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
