"""The gRPC side of `tidings serve` by grpcio alone: ``python -m bench.serving.bare_rpc`` listens on a free port.

The same calls with the same messages: what is published is kept in a list, and who subscribes is sent that list, with a
group no more than is acknowledged. No limits, rights, retries, patterns.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any
from uuid import uuid4

import grpc
from grpc import aio

from tidings.transports.grpc.wire import BUS, pb

PIECE = 500  # messages a frame

kept = list[Any]()


async def publish(requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    async for request in requests:
        ids = list[str]()
        for message in request.messages:
            message.id = str(uuid4())
            ids.append(message.id)
            kept.append(message)
        yield pb.PublishResponse(ids=ids)


async def subscribe(requests: AsyncIterator[Any], context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    asked = (await anext(requests)).open
    yield pb.SubscribeResponse(opened=pb.Opened())
    numbered, number, free = iter(kept), 0, asked.credit if asked.group else len(kept)
    while messages := list(islice(numbered, min(free, PIECE))):
        free -= len(messages)
        made = [pb.Received(message=m, number=number + n, cursor=str(n)) for n, m in enumerate(messages, 1)]
        number += len(messages)
        yield pb.SubscribeResponse(messages=made)
        while asked.group and not free:
            free += len((await anext(requests)).acknowledged)
    async for _ in requests:
        pass  # who subscribes ends it


async def main() -> None:
    server = aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    published = pb.PublishRequest.FromString, pb.PublishResponse.SerializeToString
    subscribed = pb.SubscribeRequest.FromString, pb.SubscribeResponse.SerializeToString
    handlers = {
        "PublishStream": grpc.stream_stream_rpc_method_handler(publish, *published),
        "Subscribe": grpc.stream_stream_rpc_method_handler(subscribe, *subscribed),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(BUS, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"grpc": [f"127.0.0.1:{port}"]}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
