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
        if scope["type"] in ("http", "websocket") and (why := self._refusal(Headers(scope=scope))):
            await _refuse(why, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        """Return why the request may not enter; nothing where it may."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and not is_loopback_name(urlsplit(f"//{host}").hostname or ""):
            return (
                f"This gateway is on a loopback address, not at {host[:100]!r}; "
                "ask 127.0.0.1 or localhost."
            )
        if origin is None or origin in self._allowed or urlsplit(origin).netloc == host:
            return ""
        return (
            f"A web page of {origin[:100]!r} asked for host {host[:100]!r}, which is not this "
            "gateway's own; allow an origin with HEADRACE_ALLOWED_ORIGINS."
        )


async def _refuse(why: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before the handshake: a 403
        return
    response = problem_response(Request(scope), Problem(403, "foreign-origin", why))
    await response(scope, receive, send)


def is_loopback_name(host: str) -> bool:
    """Tell whether a host name or address cannot leave this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
