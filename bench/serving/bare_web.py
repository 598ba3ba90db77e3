"""What `tidings serve` does over memory, by Starlette alone: ``python -m bench.serving.bare_web`` says where.

Nothing of Tidings is in it: no limits, rights, cursors, groups, heartbeats; a message is a CloudEvent of the same size,
made once for all who follow. uvicorn is configured as `tidings serve` does it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

RETAINED = 100_000  # messages: as many as the memory bus keeps
LINES = "application/x-ndjson"

kept = deque[bytes](maxlen=RETAINED)
followers: dict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
_raw = msgspec.json.Decoder(msgspec.Raw)


def event(topic: str, id: str, data: msgspec.Raw) -> bytes:
    told = {
        "specversion": "1.0",
        "id": id,
        "source": "bare",
        "type": topic,
        "time": datetime.fromtimestamp(time.time(), UTC).isoformat(),
        "datacontenttype": "application/json",
        "tdgtopic": topic,
        "data": data,
    }
    return msgspec.json.encode(told)


async def publish(request: Request) -> Response:
    topic, body = request.path_params["topic"], await request.body()
    many = request.headers.get("content-type") == LINES
    ids = []
    for raw in _raw.decode_lines(body) if many else [_raw.decode(body)]:
        id = str(uuid4())
        ids.append(id)
        kept.append(bytes(raw))
        if following := followers.get(topic):
            made = event(topic, id, raw)
            for follower in following:
                follower.put_nowait(made)
    return Response(msgspec.json.encode({"ids": ids}), 202, media_type="application/json")


async def events(request: Request) -> Response:
    topic = request.path_params["topic"]
    mine = asyncio.Queue[bytes]()
    followers[topic].add(mine)

    async def written() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: %s\n\n" % await mine.get()
        finally:
            followers[topic].discard(mine)

    return StreamingResponse(written(), media_type="text/event-stream")


async def websocket(connection: WebSocket) -> None:
    await connection.accept()
    topic = (await connection.receive_json())["subscribe"]["pattern"]
    mine = asyncio.Queue[bytes]()
    followers[topic].add(mine)
    writing = asyncio.create_task(_write(connection, mine))
    try:
        while True:
            await connection.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        writing.cancel()
        followers[topic].discard(mine)


async def _write(connection: WebSocket, mine: asyncio.Queue[bytes]) -> None:
    await connection.send_text('{"subscribed":{}}')
    while True:
        await connection.send_text((await mine.get()).decode())


app = Starlette(
    routes=[
        Route("/topics/{topic}", publish, methods=["POST"]),
        Route("/topics/{topic}", events, methods=["GET"]),
        WebSocketRoute("/ws", websocket),
    ]
)


def main() -> None:
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="websockets-sansio",
        ws_ping_interval=15.0,
        ws_ping_timeout=30.0,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(json.dumps({"http": [f"http://127.0.0.1:{listening.getsockname()[1]}"]}), flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(uvicorn.Server(config).serve([listening]))


if __name__ == "__main__":
    main()
