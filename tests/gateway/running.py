"""A real gateway, and a real relay, in the test's own process."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from unittest.mock import patch

from redis.asyncio import Redis

from common.connections import command_client, pubsub_client
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry
from common.settings import Settings
from gateway import main
from gateway.doorbell import Doorbell
from gateway.main import Gateway, Server, listen
from gateway.relay import Relay
from gateway.services import Services
from tests.support.waiting import eventually, within


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that listens, and a way to look inside."""

    url: str
    services: Services
    server: Server

    @property
    def relay(self) -> Relay:
        """Its watched jobs."""
        return self.services.relay

    @property
    def num_connections(self) -> int:
        """How many sockets it holds."""
        return len(self.server.server_state.connections)

    @property
    def num_faults(self) -> float:
        """How many requests it answered with 500."""
        samples = [
            sample
            for metric in self.services.metrics.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["status"] == "500"
        ]
        return sum(sample.value for sample in samples)

    async def is_idle(self) -> bool:
        """Tell whether nothing is left of anything that anybody followed."""
        return self.relay.num_watches == 0 and len(self.services.streams) == 0


@asynccontextmanager
async def running_gateway(settings: Settings) -> AsyncIterator[RunningGateway]:
    """Run the gateway's own ``run`` on a free loopback port; stop it without a drain."""
    servers: asyncio.Queue[Server] = asyncio.Queue()
    parts: list[Services] = []

    class ObservedServer(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            servers.put_nowait(self)

    class ObservedGateway(Gateway):
        def _services(self) -> Services:
            parts.append(super()._services())
            return parts[0]

    listener = listen(settings.host, 0)
    port = listener.getsockname()[1]
    async with (
        aclosing(command_client(settings.redis)) as redis,
        aclosing(pubsub_client(settings.redis)) as subscriber,
    ):
        with patch.object(main, "Server", ObservedServer):
            task = asyncio.create_task(
                ObservedGateway(settings, redis, subscriber).run(listener, is_fit=True)
            )
            async with within():
                server = await servers.get()
        try:
            yield RunningGateway(f"http://{settings.host}:{port}", parts[0], server)
        finally:
            server.force_exit = True
            server.stop()
            async with within():
                await task


@asynccontextmanager
async def running_relay(
    url: str,
    keys: Keys,
    *,
    resync_s: float = 0.05,
    doorbell: Callable[[Redis, Redis, str], Doorbell] = Doorbell,
) -> AsyncIterator[Relay]:
    """Run a relay that is connected."""
    async with (
        aclosing(command_client(url)) as redis,
        aclosing(pubsub_client(url)) as subscriber,
    ):
        bell = doorbell(subscriber, redis, keys.probe("test"))
        relay = Relay(JobStore(redis, keys), Registry(redis, keys), bell, keys, resync_s)
        task = asyncio.create_task(relay.run())
        try:
            yield relay
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until_idle(relay: Relay) -> None:
    """Return when the relay watches nothing; fails when it goes on watching."""

    async def is_idle() -> bool:
        return relay.num_watches == 0

    await eventually(is_idle)
