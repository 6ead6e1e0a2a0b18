"""The nodes of a cluster: who owns which slot, and what to do when a node is gone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.connection import AbstractConnection

from common.topology.careful import UNAVAILABLE
from common.topology.known_nodes import (
    ASK_S,
    MAX_REDIRECTS,
    KnownNodes,
    nobody_answers,
    unsettled,
)
from common.topology.server_url import Address
from common.topology.slots import SlotMap, read_slot_map

REDIRECTIONS = (exceptions.MovedError, exceptions.AskError)

Reply = TypeVar("Reply")


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
        self._known = KnownNodes(seeds)
        self._make = make
        self._clients: dict[Address, Redis] = {}  # one that has left the cluster stays, unconnected
        self._lock = asyncio.Lock()

    def client(self, address: Address) -> Redis:
        """Return the client of a node."""
        if address not in self._clients:
            self._clients[address] = self._make(address)
        return self._clients[address]

    async def map(self, *, anew: bool = False) -> SlotMap:
        """Return who owns what; raises ``ConnectionError`` where no node knows."""
        self._known.is_doubtful |= anew
        if self._known.is_doubtful:
            async with self._lock:
                if self._known.is_doubtful:
                    await self._ask_around()
        return self._known.map

    async def owner(self, slot: int) -> Address:
        """Return the node that owns the slot; raises ``ConnectionError`` where none does."""
        await self.map()
        return self._known.owner(slot)

    async def on_owner(self, slot: int, do: Callable[[Redis, bool], Awaitable[Reply]]) -> Reply:
        """Do something at the slot's owner; again only where it was surely not done.

        That is where a node has sent us elsewhere, or is gone and the slot has another owner.
        ``do`` gets the node's client, and whether the node wants ``ASKING`` first.
        """
        address, asking = await self.owner(slot), False
        for _ in range(MAX_REDIRECTS):
            try:
                return await do(self.client(address), asking)
            except REDIRECTIONS as error:
                asking = not isinstance(error, exceptions.MovedError)
                address = (error.host or address[0], error.port)
                self._known.is_doubtful |= not asking
            except Unreached:
                self.suspect(address)
                gone, address, asking = address, await self.owner(slot), False
                if address == gone:
                    raise
            except UNAVAILABLE:
                self.suspect(address)
                raise
        raise unsettled(slot)

    def suspect(self, address: Address) -> None:
        """Ask for the map before the next command, and this node last."""
        self._known.suspect(address)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _ask_around(self) -> None:
        asked, reason = self._known.to_ask(), ""
        for address in asked:
            try:
                async with asyncio.timeout(ASK_S):
                    reply = await _ask_for_slots(self.client(address))
            except UNAVAILABLE as error:  # TimeoutError is an OSError
                self._known.suspect(address)
                reason = str(error)
                continue
            await self._adopt(read_slot_map(reply, address))
            return
        raise nobody_answers(asked, reason)

    async def _adopt(self, found: SlotMap) -> None:
        """Use the map. What still waits for a node that is out of it has waited long enough."""
        self._known.learn(found)
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
        if not known:
            raise exceptions.ConnectionError("the cluster has no nodes yet")
        self._num_located += 1
        return known[self._num_located % len(known)]

    async def is_right(self, address: Address) -> bool:
        """Tell whether the node is still counted among the living; True where nobody knows."""
        self._nodes.suspect(address)
        try:
            return address in (await self._nodes.map()).nodes
        except exceptions.ConnectionError:
            return True


async def _ask_for_slots(node: Redis) -> Any:
    return await node.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
