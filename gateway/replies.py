"""JSON responses from msgspec structs."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the struct as JSON."""
    extra = {"Cache-Control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(body), status, extra, "application/json")
