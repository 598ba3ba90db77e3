"""A tab of a real browser, driven by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from tests.servers import server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from .serving import DEADLINE


class Tab:
    """``complaints``: what its console shows as errors, scripts that failed and what the page's policy forbade."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.complaints = list[str]()
        self.requested = set[str]()
        self._ids = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self.connection:
                said = json.loads(text)
                if "id" in said:
                    self._asked.pop(said["id"]).set_result(said)
                elif said["method"] == "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(said["params"]["exceptionDetails"]))
                elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                    self.complaints.append(said["params"]["entry"]["text"])
                elif said["method"] == "Network.requestWillBeSent":
                    self.requested.add(said["params"]["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        await self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(DEADLINE):
            said = await answer
        assert "error" not in said, said
        return said["result"]

    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        done = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Its value, once that is true."""
        async with asyncio.timeout(DEADLINE):
            while True:
                if value := await self.run(expression):
                    return value
                await asyncio.sleep(0.02)

    async def type(self, id: str, text: str) -> None:
        """Put text into a field, as if typed over what it held."""
        await self.run(f"document.getElementById({json.dumps(id)}).select()")
        await self.call("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """Press the left button in the middle of an element."""
        middle = "const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
        found = (
            f"const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView({{block: 'center'}})"
        )
        place = await self.run(f"(() => {{ {found}; {middle}; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def shape(self, width: int, height: int, scheme: str) -> None:
        """A window of this size, in ``light`` or ``dark``."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Tab]:
    """A page in a window of its own, which shares nothing with others: a tab behind another one would be asleep."""
    chromium = await asyncio.to_thread(server, "chromium")
    async with httpx.AsyncClient(base_url=chromium.url, timeout=DEADLINE) as tools:
        version = (await tools.get("/json/version")).json()
    async with connect(version["webSocketDebuggerUrl"], proxy=None) as connection:
        browser = Tab(connection)
        context = await browser.call("Target.createBrowserContext")
        try:
            opened = await browser.call("Target.createTarget", url="about:blank", newWindow=True, **context)
            page = f"{version['webSocketDebuggerUrl'].partition('/browser/')[0]}/page/{opened['targetId']}"
            async with connect(page, max_size=None, proxy=None) as inside:
                tab = Tab(inside)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Page.navigate", url=url)
                await tab.until("document.readyState === 'complete'")
                yield tab
        finally:
            await browser.call("Target.disposeBrowserContext", **context)
