"""Health and reflection, as gRPC has them (``grpc.health.v1``, ``grpc.reflection.v1alpha``).

``Check`` is for everybody. ``Watch`` and reflection stay open: they are streams as any other, of somebody known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tidings.gateway.rights import Principal
from tidings.transports.grpc.wire import FILE

from .calls import Calls, Context, Stream


class Standard:
    """The endpoints. ``services``: what is served beside them."""

    def __init__(self, services: Sequence[str]) -> None:
        self.services = services
        self.health = health.aio.HealthServicer()
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        self.reflection: Any = reflection.aio.ReflectionServicer(names, pool=described())

    def handlers(self, calls: Calls) -> tuple[grpc.GenericRpcHandler, grpc.GenericRpcHandler]:
        asked, told = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse.SerializeToString
        check = calls.unary(self.check, asked, for_all=True)
        watch = calls.streaming(self.watch, asked)
        reflect = calls.streaming(self.reflect, reflection_pb2.ServerReflectionRequest)
        described = reflection_pb2.ServerReflectionResponse.SerializeToString
        looks: dict[str, Any] = {
            "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=told),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=told),
        }
        reflects: dict[str, Any] = {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(reflect, response_serializer=described)
        }
        return (
            grpc.method_handlers_generic_handler(health.SERVICE_NAME, looks),
            grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, reflects),
        )

    async def start(self) -> None:
        for name in ("", *self.services):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        await self.health.enter_graceful_shutdown()

    async def check(self, request: Any, who: Principal, context: Context) -> Any:
        return await self.health.Check(request, context)

    async def watch(self, request: Any, who: Principal, stream: Stream) -> None:
        await self.health.Watch(request, stream.context)

    async def reflect(self, _: Any, who: Principal, stream: Stream) -> None:
        async def requests() -> AsyncIterator[Any]:
            while (request := await stream.read()) is not None:
                yield request

        async for response in self.reflection.ServerReflectionInfo(requests(), stream.context):
            await stream.write(response)


def described() -> DescriptorPool:
    """What reflection tells of."""
    pool = DescriptorPool()
    for file in (FILE, health_pb2.DESCRIPTOR.serialized_pb, reflection_pb2.DESCRIPTOR.serialized_pb):
        pool.AddSerializedFile(file)
    return pool
