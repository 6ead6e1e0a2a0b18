"""A bad network: a TCP proxy on loopback that delays, cuts, truncates and swallows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_CHUNK = 64 * 1024


@dataclass(slots=True)
class Trap:
    """Holds a command for ever, before the server sees it or after it has done it.

    ``command`` is a part of its bytes; with ``reply`` only an answer with these bytes is held.
    """

    command: bytes
    applied: bool
    reply: bytes = b""
    sprung: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        """Say that it is caught, and never let go."""
        self.sprung.set()
        await asyncio.Event().wait()


class FaultProxy:
    """Passes bytes on to a loopback port, as long as nothing is wrong with it.

    ``delay_s`` holds every chunk back. ``num_cut`` counts connections that were ended from here.
    ``port`` is where the server seems to be.
    """

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self.num_cut = 0
        self._target = port
        self.port = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._truncate_at: int | None = None  # of the next reply
        self._trap: Trap | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where the server seems to be."""
        return f"redis://127.0.0.1:{self.port}"

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

    def set_trap(self, command: bytes, *, applied: bool, reply: bytes = b"") -> Trap:
        """Catch the next command of that kind: where whoever sent it can be killed."""
        self._trap = Trap(command, applied, reply)
        return self._trap

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ends = {writer, server_writer}
        self._open |= ends
        try:
            caught = asyncio.Event()  # a command of this connection was: its reply is held
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_commands(reader, server_writer, caught))
                group.create_task(self._pass_replies(server_reader, writer, caught))
        except* OSError:
            pass  # one side is gone, so is the other
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pass_commands(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caught: asyncio.Event
    ) -> None:
        while chunk := await self._next(reader):
            trap = self._trap
            if trap and trap.command in chunk and not trap.sprung.is_set():
                if not trap.applied:
                    await trap.hold()
                caught.set()
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caught: asyncio.Event
    ) -> None:
        while chunk := await self._next(reader):
            if caught.is_set() and self._trap:
                if self._trap.reply in chunk:
                    await self._trap.hold()
                caught.clear()
            cut_at, self._truncate_at = self._truncate_at, None
            writer.write(chunk[:cut_at])
            await writer.drain()
            if cut_at is not None:
                self.num_cut += 1
                break
        raise ConnectionResetError

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next bytes when the network lets them through."""
        chunk = await reader.read(_CHUNK)
        await asyncio.sleep(self.delay_s)
        await self._flows.wait()
        return chunk


@asynccontextmanager
async def fault_proxy(port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy before a port of this machine."""
    proxy = FaultProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.heal()
        proxy.cut()
