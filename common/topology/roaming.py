"""Connections that ask where to go, each time they connect: the server that they want moves."""

from typing import Any, Protocol
from weakref import WeakSet

from redis import exceptions
from redis.asyncio import Connection

from common.topology.careful import CarefulTcp, CarefulTls
from common.topology.server_url import Address, Transport

SILENCE_S = 10.0
"""A subscription that hears nothing for so long asks whether it is still in the right place."""


class Guide(Protocol):
    """Knows where the connections of a client belong."""

    async def locate(self, connection: Connection) -> Address:
        """Return where this connection should go now; raises redis-py's ``ConnectionError``."""

    async def is_right(self, address: Address) -> bool:
        """Tell whether somebody who is connected there should stay; True where nobody knows."""


class Roaming:
    """Asks its guide before it connects. A subscription that stays silent asks again."""

    host: str
    port: int

    def __init__(self, *, guide: Guide, **options: Any) -> None:
        super().__init__(**options)
        self._guide = guide

    @property
    def address(self) -> Address:
        """Where it was last connected to."""
        return self.host, self.port

    async def _connect(self) -> None:
        self.host, self.port = await self._guide.locate(self)  # type: ignore[arg-type]
        await super()._connect()  # type: ignore[misc]

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - redis-py's
        **options: Any,
    ) -> Any:
        """Return the reply. A server that is no primary any more is left."""
        waits = timeout is None and self.socket_timeout is None  # type: ignore[attr-defined]
        read = super().read_response  # type: ignore[misc]
        try:
            if not waits:
                return await read(disable_decoding, timeout, **options)
            while (reply := await read(disable_decoding, SILENCE_S, **options)) is None:
                await self._reconsider()
        except exceptions.ReadOnlyError:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise
        return reply

    async def _reconsider(self) -> None:
        if not await self._guide.is_right(self.address):
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise exceptions.ConnectionError("{}:{} is out of service".format(*self.address))


class RoamingTcp(Roaming, CarefulTcp):
    """A roaming TCP connection."""


class RoamingTls(Roaming, CarefulTls):
    """A roaming TLS connection."""


ROAMING: dict[Transport, type] = {Transport.TCP: RoamingTcp, Transport.TLS: RoamingTls}


class Herd:
    """The connections of one client, so that all can be called away from a server at once."""

    def __init__(self) -> None:
        self._connections: WeakSet[Connection] = WeakSet()

    def add(self, connection: Connection) -> None:
        """Count the connection in."""
        self._connections.add(connection)

    async def leave_all_but(self, address: Address) -> None:
        """Disconnect those that are connected elsewhere: a frozen server would hold them."""
        for connection in list(self._connections):
            if connection.is_connected and (connection.host, connection.port) != address:
                await connection.disconnect(nowait=True)
