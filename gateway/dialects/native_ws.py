"""The native WebSocket dialect: the ``event`` messages of ``/v1/ws``."""

import msgspec

from common.events import Event

_encoder = msgspec.json.Encoder()


def frame(job_id: str, n: int, event: Event) -> bytes:
    """Return one event as a text message."""
    return b'{"type":"event","job":"%s","n":%d,"event":%s}' % (
        job_id.encode(),
        n,
        _encoder.encode(event),
    )
