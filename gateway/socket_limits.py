"""What a WebSocket may cost below the application, and a close that arrives.

uvicorn closes the connection together with the close frame that refuses a message. Over unread
bytes that is a reset, and the client would not learn the code: so the connection lingers.
"""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from gateway.http_limits import INVALID_HTTP, LINGER_S, refusal

MAX_FRAGMENTS = 1_000  # of one message


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """Bounds what a client makes us keep: fragments, and pongs that it does not read."""

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio's callback
        if self.conn.parser_exc is not None:
            return  # refused before: what still comes is thrown away
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        """Answer a handshake that the library cannot read; uvicorn would wait for ever."""
        self.handshake_complete = self.close_sent = True
        self.transport.write(refusal(INVALID_HTTP))
        self.transport.close()

    def handle_cont(self, event: Frame) -> None:  # noqa: D102 - uvicorn's callback
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """Answer, unless the client does not read: pongs would pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def send_receive_event_to_app(self) -> None:
        """Pass a message on; text that is none is the client's fault, and no traceback of ours."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "text messages are UTF-8")
                return
        super().send_receive_event_to_app()

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.send_close(code, reason)
            self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """Close with the code that says why, and wait a moment for the client to read it."""
        assert self.conn.close_sent is not None
        close = self.conn.close_sent
        disconnect = {"type": "websocket.disconnect", "code": close.code, "reason": close.reason}
        self.queue.put_nowait(disconnect)  # type: ignore[arg-type]
        self.stop_keepalive()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)
