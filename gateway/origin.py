"""Keeps foreign web pages out of a gateway that has no keys yet.

A browser lets any page open a WebSocket to, or post a form at, a loopback address, and a hostile
name server can point a page's own name there. So a request that says which page sent it
(``Origin``) must come from a page of this gateway or an allowed one, and on a loopback address the
``Host`` must be a loopback name.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import Problem
from gateway.problems import problem_response


class OriginGuard:
    """Refuses requests of foreign pages. Plain ASGI."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str], *, loopback_only: bool) -> None:
        self._app = app
        self._allowed = allowed
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or answer 403."""
        if scope["type"] in ("http", "websocket") and not self._may_enter(Headers(scope=scope)):
            await self._refuse(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _may_enter(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and not is_loopback_name(urlsplit(f"//{host}").hostname or ""):
            return False
        return origin is None or origin in self._allowed or urlsplit(origin).netloc == host

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before the handshake: a 403
            return
        problem = Problem(403, "foreign-origin", _reason(Headers(scope=scope)))
        response = problem_response(Request(scope), problem)
        await response(scope, receive, send)


def _reason(headers: Headers) -> str:
    host, origin = headers.get("host", "")[:100], headers.get("origin")
    if origin is None:
        return (
            f"This gateway is on a loopback address, not at {host!r}; ask 127.0.0.1 or localhost."
        )
    return (
        f"A web page of {origin[:100]!r} asked for host {host!r}, which is not this gateway's own; "
        "allow an origin with HEADRACE_ALLOWED_ORIGINS."
    )


def is_loopback_name(host: str) -> bool:
    """Tell whether a host name or address cannot leave this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
