"""uvicorn's HTTP protocol, with a way to cut a connection.

ASGI has no word for "end this response as broken". A stream that must stop before its terminal
event may not end cleanly, because clients take a clean end for success; and a reader that takes
nothing would keep its socket for ever. So the scope carries the transport's two ways out.
"""

from dataclasses import dataclass

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_EXTENSION = "headrace.connection"


class CuttableProtocol(HttpToolsProtocol):
    """Puts a :class:`Cut` into the scope of every request."""

    def on_message_begin(self) -> None:  # noqa: D102 - httptools' callback
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"cut": Cut(self)}}


@dataclass(frozen=True, slots=True)
class Cut:
    """Two ways to end a connection without ending its response."""

    _protocol: HttpToolsProtocol

    def close(self) -> None:
        """Send what is buffered, then close: the body stays incomplete, and the client sees it."""
        self._protocol.transport.close()

    def abort(self) -> None:
        """Close at once and forget what is buffered: for a reader that takes nothing."""
        self._protocol.transport.abort()


def cut_of(scope: Scope) -> Cut | None:
    """Return the way to cut this request's connection; None under another server."""
    found = (scope.get("extensions") or {}).get(_EXTENSION, {}).get("cut")
    return found if isinstance(found, Cut) else None
