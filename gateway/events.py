"""The door of ``/v1/jobs/{id}/events``: SSE by GET, so that a browser's ``EventSource`` works."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.event_stream import open_stream
from gateway.reading import read_after, read_job_id
from gateway.services import services_of, tenant_of


async def follow(request: Request) -> Response:
    """Stream what follows ``Last-Event-ID`` or ``?after=``, from the start without them."""
    job_id = read_job_id(request.path_params["job_id"])
    after = read_after(request.query_params, request.headers.get("last-event-id"))
    if request.method == "HEAD":
        return Response(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    return await open_stream(services_of(request), tenant_of(request), job_id, after)
