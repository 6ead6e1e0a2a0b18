"""Redis Cluster: every command goes to the node that owns its key's slot.

redis-py has a cluster client, and this is not it, because that one (5.3) sends a write again after
a lost reply, closes all connections to all nodes when one breaks, loses a connection when a task is
cancelled in mid-command, raises instead of waiting for a free one, and has neither MULTI nor
pub/sub. This one is a router before the clients that single servers get: only what no node has done
is sent again.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import CommandStackT, CommandT, Pipeline

from common.topology.careful import UNAVAILABLE
from common.topology.nodes import REDIRECTIONS, AnyNode, Nodes, Unreached
from common.topology.server_url import Address
from common.topology.slots import FIRST_SLOT, slot_of, slots_of


class ClusterRedis(Redis):
    """The client of a cluster, to its callers the client of one server.

    Its own pool is for subscriptions, on any node. ``make_pool`` gets the guide of those.
    """

    def __init__(
        self, nodes: Nodes, make_pool: Callable[[AnyNode], BlockingConnectionPool]
    ) -> None:
        super().__init__(connection_pool=make_pool(AnyNode(nodes)))
        self._nodes = nodes

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command where its key is; one without a key always on the same node."""
        slot = slot_of(args)
        run = partial(_run_one, command=(args, options))
        return await self._nodes.on_owner(FIRST_SLOT if slot is None else slot, run)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline; the keys of a transaction must be in one slot."""
        assert shard_hint is None
        return _ClusterPipeline(self, self._nodes, transaction=transaction)

    async def primaries(self) -> list[Redis]:
        """Return a client of every node that takes writes now."""
        known = await self._nodes.map(anew=True)
        return [self._nodes.client(address) for address in known.primaries]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close all connections."""
        await self._nodes.aclose()
        await self.connection_pool.disconnect()
        await super().aclose(close_connection_pool)


class _ClusterPipeline(Pipeline):
    """Sends each node its share at once, and gives the replies in the order of the commands."""

    def __init__(self, cluster: ClusterRedis, nodes: Nodes, *, transaction: bool) -> None:
        pool, callbacks = cluster.connection_pool, cluster.response_callbacks
        super().__init__(pool, callbacks, transaction, None)
        self._cluster = cluster
        self._nodes = nodes

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send everything and return all replies; errors are raised, or are replies too."""
        commands = list(self.command_stack)
        await self.reset()  # type: ignore[no-untyped-call]
        if not commands:
            return []
        slots = slots_of([args for args, _ in commands])
        if self.is_transaction:
            assert len(set(slots)) == 1, "a transaction must stay in one slot"
            run = partial(_run_transaction, commands=commands, raise_on_error=raise_on_error)
            return await self._nodes.on_owner(slots[0], run)
        replies = await self._run_shares(commands, slots)
        if raise_on_error:
            self.raise_first_error(commands, replies)
        return replies

    async def _run_shares(self, commands: CommandStackT, slots: list[int]) -> list[Any]:
        shares: dict[Address, list[int]] = {}
        for index, slot in enumerate(slots):
            shares.setdefault(await self._nodes.owner(slot), []).append(index)
        runs = [
            self._run_share(address, [commands[index] for index in indices])
            for address, indices in shares.items()
        ]
        # Every share is waited for: what is sent has happened, whatever became of the others.
        found = await asyncio.gather(*runs, return_exceptions=True)
        replies: list[Any] = [None] * len(commands)
        for indices, share in zip(shares.values(), found, strict=True):
            if isinstance(share, BaseException):
                raise share
            for index, reply in zip(indices, share, strict=True):
                replies[index] = reply
        return replies

    async def _run_share(self, address: Address, commands: CommandStackT) -> list[Any]:
        try:
            replies = await _run_many(self._nodes.client(address), commands)
        except Unreached:
            self._nodes.suspect(address)
            return [await self._run_again(command) for command in commands]
        except UNAVAILABLE:
            self._nodes.suspect(address)
            raise
        for index, reply in enumerate(replies):
            if isinstance(reply, REDIRECTIONS):
                replies[index] = await self._run_again(commands[index])
            elif isinstance(reply, UNAVAILABLE):
                self._nodes.suspect(address)
        return replies

    async def _run_again(self, command: CommandT) -> Any:
        args, options = command
        try:
            return await self._cluster.execute_command(*args, **options)
        except exceptions.ResponseError as error:
            return error


async def _run_one(node: Redis, asking: bool, *, command: CommandT) -> Any:
    args, options = command
    if not asking:
        return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]
    _, reply = await _run_many(node, [(("ASKING",), {}), command])
    if isinstance(reply, Exception):
        raise reply
    return reply


async def _run_many(node: Redis, commands: CommandStackT) -> list[Any]:
    async with node.pipeline(transaction=False) as pipeline:
        pipeline.command_stack = list(commands)
        return await pipeline.execute(raise_on_error=False)


async def _run_transaction(
    node: Redis, asking: bool, *, commands: CommandStackT, raise_on_error: bool
) -> list[Any]:
    async with node.pipeline(transaction=True) as pipeline:
        if asking:
            await pipeline.immediate_execute_command("ASKING")  # type: ignore[no-untyped-call]
        pipeline.command_stack = list(commands)
        return await pipeline.execute(raise_on_error)
