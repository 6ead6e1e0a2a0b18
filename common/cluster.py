"""Redis Cluster: every command goes to the node that owns its key's slot.

redis-py has a cluster client, and this is not it, because that one (5.3) sends a write again after
a lost reply, closes all connections to all nodes when one breaks, loses a connection when a task is
cancelled in mid-command, raises instead of waiting for a free one, and has neither MULTI nor
pub/sub. This one is a router before the clients that single servers get: only what no node has done
is sent again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.client import CommandStackT, CommandT, Pipeline
from redis.asyncio.connection import AbstractConnection

from common.careful import UNAVAILABLE
from common.server_url import Address
from common.slots import FIRST_SLOT, SlotMap, read_slot_map, slot_of, slots_of

ASK_S = 1.0
MAX_REDIRECTS = 5

Reply = TypeVar("Reply")
_REDIRECTIONS = (exceptions.MovedError, exceptions.AskError)


class Unreached(exceptions.ConnectionError):
    """There was no connection to the node, so nothing was sent."""


class NodePool(BlockingConnectionPool):
    """Tells a node that could not be reached from one that was lost in mid-command."""

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        """Return a connection; raises ``Unreached``."""
        try:
            found: AbstractConnection = await super().get_connection()
        except UNAVAILABLE as error:
            raise Unreached(str(error)) from error
        return found


class Nodes:
    """The nodes of a cluster, a client for each, and who owns which slot."""

    def __init__(self, seeds: Sequence[Address], make: Callable[[Address], Redis]) -> None:
        self._seeds = seeds
        self._make = make
        self._clients: dict[Address, Redis] = {}  # one that has left the cluster stays, unconnected
        self._map = SlotMap(())
        self._is_doubtful = True  # the map may be wrong: ask before the next command
        self._suspects: set[Address] = set()  # did not answer lately: asked last
        self._lock = asyncio.Lock()

    def client(self, address: Address) -> Redis:
        """Return the client of a node."""
        if address not in self._clients:
            self._clients[address] = self._make(address)
        return self._clients[address]

    async def map(self) -> SlotMap:
        """Return who owns what; raises ``ConnectionError`` where no node knows."""
        if self._is_doubtful:
            async with self._lock:
                if self._is_doubtful:
                    await self._ask_around()
        return self._map

    async def owner(self, slot: int) -> Address:
        """Return the node that owns the slot; raises ``ConnectionError`` where none does."""
        found = (await self.map()).owner(slot)
        if found is None:
            self._is_doubtful = True
            raise exceptions.ConnectionError(f"no node of the cluster owns slot {slot}")
        return found

    async def on_owner(self, slot: int, do: Callable[[Redis, bool], Awaitable[Reply]]) -> Reply:
        """Do something at the slot's owner; again only where it was surely not done.

        A node has sent us elsewhere, or it is gone and the slot has another owner already.

        ``do`` gets the node's client, and whether the node wants ``ASKING`` first.
        """
        address, asking = await self.owner(slot), False
        for _ in range(MAX_REDIRECTS):
            try:
                return await do(self.client(address), asking)
            except _REDIRECTIONS as error:
                asking = not isinstance(error, exceptions.MovedError)
                address = (error.host or address[0], error.port)
                self._is_doubtful |= not asking
            except Unreached:
                self.suspect(address)
                gone, address = address, await self.owner(slot)
                if address == gone:
                    raise
            except UNAVAILABLE:
                self.suspect(address)
                raise
        raise exceptions.ConnectionError(f"the cluster does not settle who owns slot {slot}")

    def suspect(self, address: Address) -> None:
        """Ask for the map before the next command, and this node last."""
        self._suspects.add(address)
        self._is_doubtful = True

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _ask_around(self) -> None:
        known = dict.fromkeys((*self._map.nodes, *self._seeds))
        reason = ""
        for address in sorted(known, key=self._suspects.__contains__):
            try:
                async with asyncio.timeout(ASK_S):
                    reply = await _ask_for_slots(self.client(address))
            except UNAVAILABLE as error:  # TimeoutError is an OSError
                self._suspects.add(address)
                reason = str(error) or "no reply in time"
                continue
            self._suspects.clear()
            await self._adopt(read_slot_map(reply, address))
            return
        raise exceptions.ConnectionError(f"none of {len(known)} cluster nodes answers: {reason}")

    async def _adopt(self, found: SlotMap) -> None:
        """Use the map. What still waits for a node that is out of it has waited long enough."""
        self._map, self._is_doubtful = found, False
        for address in self._clients.keys() - set(found.nodes):
            try:
                await self._clients[address].connection_pool.disconnect()
            except UNAVAILABLE:
                continue  # it took too long to say goodbye


class AnyNode:
    """Guides subscriptions: a message reaches them on every node, so any live one will do."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._num_located = 0

    async def locate(self, connection: Connection) -> Address:
        """Return a node, and another one at each call: the last one may have died."""
        if self._num_located:
            self._nodes.suspect((connection.host, connection.port))
        known = (await self._nodes.map()).nodes
        self._num_located += 1
        return known[self._num_located % len(known)]

    async def is_right(self, address: Address) -> bool:
        """Tell whether the node is still counted among the living; True where nobody knows."""
        self._nodes.suspect(address)
        try:
            return address in (await self._nodes.map()).nodes
        except exceptions.ConnectionError:
            return True


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
        """Return a client of every node that takes writes."""
        return [self._nodes.client(address) for address in (await self._nodes.map()).primaries]

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
            if isinstance(reply, _REDIRECTIONS):
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


async def _ask_for_slots(node: Redis) -> Any:
    return await node.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]


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
