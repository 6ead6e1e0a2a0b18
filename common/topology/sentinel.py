"""Redis Sentinel: the primary is whom the sentinels name, and after a failover another one.

A connection asks them whenever it connects. redis-py has the same in ``redis.asyncio.sentinel``,
but its pool raises instead of waiting for a free connection, and it leaves a primary that hangs
only when each of its connections has run into its own timeout.
"""

from typing import Any

from redis import exceptions
from redis.asyncio import Connection, ConnectionPool, Redis

from common.topology.careful import CAREFUL, UNAVAILABLE
from common.topology.roaming import Herd
from common.topology.server_url import Address, ServerUrl

ASK_S = 1.0


class Sentinels:
    """Names the primary of a service. The guide of its client's connections."""

    def __init__(self, server: ServerUrl) -> None:
        self._server = server
        self._order = list(server.addresses)  # the last one that knew comes first
        self._primary: Address | None = None
        self._herd = Herd()

    async def locate(self, connection: Connection) -> Address:
        """Return the primary; when it has changed, every connection leaves the old one."""
        self._herd.add(connection)
        primary = await self.primary()
        if self._primary not in (None, primary):
            await self._herd.leave_all_but(primary)
        self._primary = primary
        return primary

    async def is_right(self, address: Address) -> bool:
        """Tell whether this is the primary, as far as anybody knows."""
        try:
            return await self.primary() == address
        except exceptions.ConnectionError:
            return True

    async def primary(self) -> Address:
        """Return the primary; raises ``ConnectionError`` while no sentinel knows one."""
        reasons = []
        for sentinel in list(self._order):
            try:
                found = known_primary(await self._ask(sentinel))
            except (*UNAVAILABLE, exceptions.ResponseError) as error:
                reasons.append(str(error))
                continue
            if found:
                self._order.remove(sentinel)
                self._order.insert(0, sentinel)
                return found
        raise exceptions.ConnectionError(
            f"no sentinel of {self._server.places} knows a living primary of "
            f"{self._server.service!r} ({'; '.join(dict.fromkeys(reasons)) or 'it is down'})"
        )

    async def _ask(self, sentinel: Address) -> dict[str, Any]:
        host, port = sentinel
        pool = ConnectionPool(
            connection_class=CAREFUL[self._server.transport],  # whoever asks may be cancelled
            host=host,
            port=port,
            socket_timeout=ASK_S,
            socket_connect_timeout=ASK_S,
            **self._server.sentinel_options,
        )
        client = Redis.from_pool(pool)
        try:
            state: dict[str, Any] = await client.sentinel_master(self._server.service)  # type: ignore[no-untyped-call]
            return state
        finally:
            await client.aclose()


def known_primary(state: dict[str, Any]) -> Address | None:
    """Return the primary of a sentinel's answer, None where it holds that one for dead."""
    if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
        return None
    return state["ip"], state["port"]
