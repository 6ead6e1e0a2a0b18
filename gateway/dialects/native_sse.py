"""The native SSE dialect: ``id`` is n, ``event`` is the kind, ``data`` is the event as JSON.

The data is one line: JSON escapes every line break, so no token can forge a field.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import msgspec

from common.errors import STREAM_DIVERGED, Problem
from common.events import Event

PING = b": ping\n\n"
RECONNECT = b": this gateway stops; reconnect to resume\n\n"

_encoder = msgspec.json.Encoder()


def opening(retry_ms: int) -> bytes:
    """Return the first bytes of a stream: headers leave the server at once, a reader sees life."""
    return b"retry: %d\n: ping\n\n" % retry_ms


def frame(_job_id: str, n: int, event: Event) -> bytes:
    """Return one event."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (n, event.kind.encode(), _encoder.encode(event))


def broken(problem: Problem) -> bytes:
    """Return the last words of a stream that cannot go on; it has no number, it is not an event.

    An empty ``id`` makes an ``EventSource`` forget its cursor where that is worth nothing now.
    """
    body = {"type": problem.urn, "title": problem.title, "detail": problem.detail}
    forget = b"id\n" if problem.type == STREAM_DIVERGED else b""
    return b"%sevent: problem\ndata: %s\n\n" % (forget, _encoder.encode(body))
