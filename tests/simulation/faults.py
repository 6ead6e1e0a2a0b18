"""A Redis client whose commands get lost, lose their replies, or end the process that sent them."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError

from common.topology.cluster import ClusterRedis

Reply = TypeVar("Reply")


class Crashed(BaseException):
    """The process is gone, before or after Redis did what it asked. Nobody catches it."""


@dataclass(slots=True)
class Faults:
    """What happens to a command: of a thousand, so many end their process or are cut off."""

    random: random.Random
    crashes: int = 0
    cuts: int = 0

    async def around(self, do: Callable[[], Awaitable[Reply]]) -> Reply:
        """Send a command; something may happen before it, or after it and before its reply."""
        # Drawn at once: in which order replies come is nobody's to say.
        before, after = (self.random.randrange(1000) for _ in range(2))
        self._strike(before)
        reply = await do()
        self._strike(after)
        return reply

    def _strike(self, drawn: int) -> None:
        if drawn < self.crashes:
            raise Crashed
        if drawn < self.crashes + self.cuts:
            raise RedisConnectionError("cut off by the simulation")


class FaultyRedis(Redis):
    """A command client with faults: of each command, and of each pipeline as a whole."""

    def __init__(self, client: Redis, faults: Faults) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self._faults = faults

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command."""
        send = super().execute_command
        return await self._faults.around(lambda: send(*args, **options))  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline with the same faults."""
        return _faulty(super().pipeline(transaction, shard_hint), self._faults)


class FaultyCluster(ClusterRedis):
    """The same for a cluster."""

    def __init__(self, client: ClusterRedis, faults: Faults) -> None:
        super().__init__(client._nodes, lambda _: BlockingConnectionPool())
        self._faults = faults

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command."""
        send = super().execute_command
        return await self._faults.around(lambda: send(*args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline with the same faults."""
        return _faulty(super().pipeline(transaction, shard_hint), self._faults)


def with_faults(client: Redis, faults: Faults) -> Redis:
    """Return a client with faults of the same server or cluster."""
    if isinstance(client, ClusterRedis):
        return FaultyCluster(client, faults)
    return FaultyRedis(client, faults)


def _faulty(pipeline: Pipeline, faults: Faults) -> Pipeline:
    execute = pipeline.execute

    async def execute_with_faults(raise_on_error: bool = True) -> Any:
        return await faults.around(lambda: execute(raise_on_error))

    pipeline.execute = execute_with_faults  # type: ignore[method-assign]
    return pipeline
