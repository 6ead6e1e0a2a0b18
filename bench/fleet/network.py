"""A bad network: a TCP proxy on loopback that can cut all connections, or swallow everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


class BadNetwork:
    """Passes bytes on to a loopback port as long as nothing is wrong with it."""

    def __init__(self, port: int) -> None:
        self.url = ""  # where the server seems to be
        self._target = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End all connections at once; new ones are let through."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def swallow(self) -> None:
        """Let nothing through from now on, in either direction; connections stay open."""
        self._flows.clear()

    def heal(self) -> None:
        """Let everything through again, what waited first."""
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        ends = {writer}
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.add(server_writer)
            self._open |= ends
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, server_writer))
                group.create_task(self._pass(server_reader, writer))
        except* OSError:
            pass  # one side is gone, so is the other
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def bad_network(port: int) -> AsyncIterator[BadNetwork]:
    """Run a proxy before a port of this machine."""
    network = BadNetwork(port)
    server = await asyncio.start_server(network.serve, "127.0.0.1", 0)
    network.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield network
    finally:
        server.close()
        network.heal()
        network.cut()
