"""uvicorn's protocols, with the connection itself in the scope.

ASGI has no word for "end this response as broken". A stream that must stop before its terminal
event may not end cleanly, because clients take a clean end for success; and a reader that takes
nothing would keep its socket for ever. And ASGI's ``send`` is a coroutine through every layer of
the application, which costs as much as the event that it sends (bench/README.md).
"""

import asyncio
from abc import ABC, abstractmethod

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import State

from gateway.http_limits import LimitedProtocol
from gateway.socket_limits import LimitedWebSocketProtocol

_EXTENSION = "headrace.connection"


class Connection(ABC):
    """A direct way in, and two ways to end a connection without ending its response."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    @abstractmethod
    def is_writable(self) -> bool:
        """Tell whether the connection is open and its reader keeps up."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send some bytes (at least one) of a body, or one text message, without waiting."""

    def close(self) -> None:
        """Send what is buffered, then close: the body stays incomplete, and the client sees it."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once and forget what is buffered: for a reader that takes nothing."""
        self._transport.abort()


class HttpConnection(Connection):
    """Writes to a chunked body whose headers ``send`` has sent.

    It does not know the protocol, which leads back here: a closed connection is freed at once, and
    leaves nothing to the garbage collector, whose full passes hold up every stream.
    """

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        super().__init__(transport)
        self._flow = flow

    @property
    def is_writable(self) -> bool:  # noqa: D102 - as in the base
        return not self._flow.write_paused and not self._transport.is_closing()

    def write(self, data: bytes) -> None:  # noqa: D102 - as in the base
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class SocketConnection(Connection):
    """Writes text messages to a WebSocket whose handshake is complete."""

    def __init__(self, protocol: WebSocketsSansIOProtocol) -> None:
        super().__init__(protocol.transport)
        self._conn = protocol.conn
        self._writable = protocol.writable

    @property
    def is_writable(self) -> bool:  # noqa: D102 - as in the base
        is_open = self._conn.state is State.OPEN and not self._transport.is_closing()
        return is_open and self._writable.is_set()

    def write(self, data: bytes) -> None:  # noqa: D102 - as in the base
        self._conn.send_text(data)
        self._transport.write(b"".join(self._conn.data_to_send()))


class CuttableProtocol(LimitedProtocol):
    """Puts the :class:`Connection` into the scope of every request."""

    def on_message_begin(self) -> None:  # noqa: D102 - httptools' callback
        super().on_message_begin()
        connection = HttpConnection(self.transport, self.flow)
        self.scope["extensions"] = {_EXTENSION: {"connection": connection}}


class CuttableWebSocketProtocol(LimitedWebSocketProtocol):
    """Puts the :class:`Connection` into the scope of every WebSocket."""

    def handle_connect(self, event: Request) -> None:  # noqa: D102 - uvicorn's callback
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was refused: nobody sees the scope
            self.scope["extensions"][_EXTENSION] = {"connection": SocketConnection(self)}


def connection_of(scope: Scope) -> Connection | None:
    """Return the connection of this request or socket; None under another server."""
    found = (scope.get("extensions") or {}).get(_EXTENSION, {}).get("connection")
    return found if isinstance(found, Connection) else None
