"""What a connection may cost before the application sees a request; uvicorn bounds none of it.

A refusal here is the answer to no request in particular: it is a whole response, after which
nothing more is read as HTTP. The connection stays half open for a moment, because closing it over
unread bytes would reset it, and the client would never see why.
"""

import asyncio
import resource
import secrets
import socket
from dataclasses import dataclass
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from common.errors import Problem
from gateway.schemas import ProblemView

# Below what the WebSocket library takes (8,192 and 128), which has no answer to what is above.
MAX_LINE = 8_000  # bytes of the address, and of one header
MAX_HEADERS = 100
MAX_HEAD = 64 * 1024  # bytes of all headers; of anything that is not a body
LINGER_S = 2.0
FILES_ASIDE = 200  # for Redis, logs, and sockets that linger
MAX_LINGERING = 100  # sockets beyond the limit that are told so; the others are cut without a word


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds that an installation may choose."""

    max_sockets: int = 20_000
    request_timeout_s: float = 60.0


class LimitedConfig(uvicorn.Config):
    """uvicorn's configuration with our bounds."""

    def __init__(self, app: ASGIApp, limits: HttpLimits, **options: Any) -> None:
        super().__init__(app, **options)
        self.limits = limits


class _Unbounded(Exception):
    """The client sends more than it may; raised inside of the parser."""


def raise_file_limit(wanted: int) -> int:
    """Let this process open as many files as it may; return how many sockets that leaves it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, max(1, hard - FILES_ASIDE))


def cut_stalled_peers(listener: socket.socket, seconds: float) -> None:
    """Let the kernel drop every accepted connection whose peer takes nothing for so long.

    That ends what no timer of a process sees: an answer that was written, to a reader that never
    reads it. Accepted sockets inherit the option. Linux only.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT") and listener.family != socket.AF_UNIX:
        option = socket.TCP_USER_TIMEOUT
        listener.setsockopt(socket.IPPROTO_TCP, option, round(1000 * seconds))


class LimitedProtocol(HttpToolsProtocol):
    """Bounds the head of a request, the time that it takes to arrive, and the number of sockets."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits if isinstance(config, LimitedConfig) else HttpLimits()
        self._timer: asyncio.TimerHandle | None = None  # set while we wait for the client
        self._is_arriving = False  # a request has begun and is not whole
        self._has_head = False  # ... but its head is, and the application works on it
        self._is_refused = False  # what still comes is thrown away
        self._num_headers = 0
        self._head_len = 0
        self._unused_len = 0  # bytes received since the parser last made something of them
        self._problem = INVALID_HTTP  # what is said where the parser stops

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # noqa: D102 - asyncio's callback
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.max_sockets
        if excess > MAX_LINGERING:
            transport.abort()
        elif excess > 0:
            self._refuse(TOO_MANY_SOCKETS)
        else:
            self._wait(self._limits.request_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 - asyncio's callback
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio's callback
        if self._is_refused:
            return
        if self._timer is None:
            self._wait(self._limits.request_timeout_s)
        self._unused_len += len(data)
        super().data_received(data)
        if self._unused_len > MAX_HEAD and not self._is_refused:
            self._refuse(HEAD_TOO_LARGE)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, unless an earlier request still waits for its answer."""
        if self._is_answering:
            self._refuse(INVALID_HTTP)
            return
        self._stop_waiting()
        self._unused_len = 0
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:  # noqa: D102 - httptools' callback
        super().on_message_begin()
        self._is_arriving, self._has_head = True, False
        self._num_headers = self._head_len = self._unused_len = 0
        self._wait(self._limits.request_timeout_s)

    def on_url(self, url: bytes) -> None:  # noqa: D102 - httptools' callback
        super().on_url(url)
        self._check(len(self.url) <= MAX_LINE, URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102 - httptools' callback
        header_len = len(name) + len(value)
        self._num_headers += 1
        self._head_len += header_len
        is_bounded = self._num_headers <= MAX_HEADERS and self._head_len <= MAX_HEAD
        self._check(is_bounded and header_len <= MAX_LINE, HEAD_TOO_LARGE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:  # noqa: D102 - httptools' callback
        self._unused_len = 0
        before = self.cycle
        super().on_headers_complete()
        self._has_head = self.cycle is not before  # no cycle is made for a WebSocket

    def on_body(self, body: bytes) -> None:  # noqa: D102 - httptools' callback
        self._unused_len = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop waiting: the request is whole."""
        self._is_arriving = False
        self._unused_len = 0
        self._stop_waiting()
        super().on_message_complete()
        if self._is_answered:
            self._wait(self.timeout_keep_alive)  # nothing else waits for the next request

    def on_response_complete(self) -> None:
        """Give a client that was answered in mid-request a moment to notice."""
        super().on_response_complete()
        if self._is_arriving and self._is_answered and not self.transport.is_closing():
            self._wait(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Say why the parser has stopped."""
        self._refuse(self._problem)

    def _check(self, is_bounded: bool, problem: Problem) -> None:
        if not is_bounded:
            self._problem = problem
            raise _Unbounded  # stops the parser, which calls send_400_response

    @property
    def _is_answered(self) -> bool:
        """Tell whether the request that arrives, or arrived last, has its whole answer."""
        return self._has_head and self.cycle.response_complete

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        return self.cycle

    @property
    def _is_answering(self) -> bool:
        """Tell whether bytes of ours would run into the answer to an earlier request."""
        cycle = self._last_cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(self.pipeline) or cycle.response_started or not cycle.more_body

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._on_late, seconds)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_late(self, seconds: float) -> None:
        self._timer = None
        if self.flow.read_paused or self._is_answering:
            self._wait(seconds)  # it is the client that waits for us
        elif not self._is_arriving or self._is_answered:
            self.transport.close()
        else:
            self._refuse(REQUEST_TOO_SLOW)

    def _refuse(self, problem: Problem) -> None:
        self._is_refused = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self._is_answering:
            self.transport.abort()
            return
        self.transport.write(refusal(problem))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)


def refusal(problem: Problem) -> bytes:
    """Return a whole response, in the form that every refusal has."""
    request_id = f"req_{secrets.token_hex(8)}"
    view = ProblemView(problem.urn, problem.title, problem.status, problem.detail, "", request_id)
    body = msgspec.json.encode(view)
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Request-Id": request_id,
    }
    if problem.retry_after_s is not None:
        headers["Retry-After"] = f"{problem.retry_after_s:.0f}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[problem.status] + lines.encode() + b"\r\n" + body


INVALID_HTTP = Problem(400, "invalid-http", "This is not HTTP/1.1 as this gateway reads it.")
URL_TOO_LONG = Problem(414, "url-too-long", f"The address is longer than {MAX_LINE} bytes.")
HEAD_TOO_LARGE = Problem(
    431,
    "headers-too-large",
    f"A request may have {MAX_HEADERS} headers of {MAX_LINE} bytes, {MAX_HEAD} bytes in all.",
)
REQUEST_TOO_SLOW = Problem(
    408, "request-too-slow", "The request took too long to arrive; send it again."
)
TOO_MANY_SOCKETS = Problem(
    503,
    "too-many-sockets",
    "This gateway has as many connections as it takes; try again or ask another one.",
    retry_after_s=5,
)
