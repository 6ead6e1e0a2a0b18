"""A bad network: a TCP proxy on loopback that delays, cuts, truncates and swallows."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

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
    """Passes bytes on to loopback ports, as long as nothing is wrong with it.

    ``delay_s`` holds every chunk back. ``num_cut`` counts connections that were ended from here.
    Where the nodes of a cluster say on which ports the others are, it says its own instead: who
    comes in through it never finds a way around it.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.delay_s = 0.0
        self.num_cut = 0
        self._tls = tls
        self._doors: dict[int, int] = {}  # our ports by those behind them
        self.holds = asyncio.Event()
        self._flows = asyncio.Event()
        self._flows.set()
        self._truncate_at: int | None = None  # of the next reply
        self._trap: Trap | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """Where the server seems to be, or the first of them."""
        return next(iter(self._doors.values()))

    @property
    def url(self) -> str:
        """Where Redis seems to be."""
        if len(self._doors) == 1:
            return f"redis://127.0.0.1:{self.port}"
        return "redis+cluster://" + ",".join(f"127.0.0.1:{door}" for door in self._doors.values())

    async def open_door(self, port: int) -> asyncio.Server:
        """Listen for who wants to reach the port."""
        serve = partial(self._serve, port)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._tls)
        self._doors[port] = server.sockets[0].getsockname()[1]
        return server

    def swallow(self) -> None:
        """Let nothing through from now on, in either direction; connections stay open.

        ``holds`` tells when there is something that waits.
        """
        self.holds.clear()
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

    async def _serve(
        self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # it is down, and its client shall know
            writer.transport.abort()
            return
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
            writer.write(self._with_our_ports(chunk)[:cut_at])
            await writer.drain()
            if cut_at is not None:
                self.num_cut += 1
                break
        raise ConnectionResetError

    def _with_our_ports(self, chunk: bytes) -> bytes:
        """Replace the ports in ``CLUSTER SLOTS`` and in redirections; both end with one."""
        if len(self._doors) > 1:
            for port, door in self._doors.items():
                chunk = chunk.replace(b":%d\r\n" % port, b":%d\r\n" % door)
        return chunk

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next bytes when the network lets them through."""
        chunk = await reader.read(_CHUNK)
        await asyncio.sleep(self.delay_s)
        if not self._flows.is_set():
            self.holds.set()
        await self._flows.wait()
        return chunk


@asynccontextmanager
async def fault_proxy(*ports: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultProxy]:
    """Run a proxy before ports of this machine: that of a server, or those of a whole cluster."""
    proxy = FaultProxy(tls)
    async with AsyncExitStack() as open_doors:
        for port in ports:
            open_doors.callback((await proxy.open_door(port)).close)
        try:
            yield proxy
        finally:
            proxy.heal()
            proxy.cut()
