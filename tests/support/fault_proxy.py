"""A bad network: a TCP proxy on loopback that delays, cuts, truncates and swallows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 64 * 1024


class FaultProxy:
    """Passes bytes on to a loopback port, as long as nothing is wrong with it.

    ``delay_s`` holds every chunk back. ``num_cut`` counts connections that were ended from here.
    """

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self.num_cut = 0
        self._target = port
        self._port = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._truncate_at: int | None = None  # of the next reply
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where the server seems to be."""
        return f"redis://127.0.0.1:{self._port}"

    def swallow(self) -> None:
        """Let nothing through from now on, in either direction; connections stay open."""
        self._flows.clear()

    def heal(self) -> None:
        """Let everything through again, what waited first."""
        self._truncate_at = None
        self.delay_s = 0.0
        self._flows.set()

    def cut(self) -> None:
        """End all connections at once; new ones are let through."""
        for writer in self._open:
            writer.transport.abort()
            self.num_cut += 1
        self._open.clear()

    def truncate(self, length: int) -> None:
        """End the connection of the next reply after so many of its bytes."""
        self._truncate_at = length

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ends = {writer, server_writer}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, server_writer, is_reply=False))
                group.create_task(self._pass(server_reader, writer, is_reply=True))
        except* OSError:
            pass  # one side is gone, so is the other
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            await asyncio.sleep(self.delay_s)
            await self._flows.wait()
            if is_reply and self._truncate_at is not None:
                chunk, self._truncate_at = chunk[: self._truncate_at], None
                writer.write(chunk)
                await writer.drain()
                self.num_cut += 1
                break
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def fault_proxy(port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy before a port of this machine."""
    proxy = FaultProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy._port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.heal()
        proxy.cut()
