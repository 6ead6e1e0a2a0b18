"""The door that lists a tenant's jobs, newest first, page by page."""

import base64

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from common.job_record import JobRecord
from common.jobs import JobState
from gateway.reading import bad_request, read_number
from gateway.replies import json_response
from gateway.schemas import JobList
from gateway.services import Services, services_of, tenant_of
from gateway.views import job_summary

MAX_PAGE = 200
SCAN_PAGES = 20  # of MAX_PAGE records: how far one request looks for a rare status


async def list_jobs(request: Request) -> Response:
    """``GET /v1/jobs``: newest first, by page."""
    services, tenant = services_of(request), tenant_of(request)
    query = request.query_params
    limit = read_number("limit", query.get("limit", "50"), 1, MAX_PAGE)
    status = _read_status(query.get("status"))
    records, cursor = await _scan(services, tenant, status, limit, _read_cursor(query))
    return json_response(JobList([job_summary(record) for record in records], cursor))


def _read_status(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text)
    except ValueError:
        known = ", ".join(JobState)
        raise bad_request("invalid-parameter", f"`status` must be one of {known}.") from None


Position = tuple[float, str]
"""A place in a tenant's list: creation time and job ID; the page begins after it."""


def _read_cursor(query: QueryParams) -> Position | None:
    text = query.get("cursor")
    if text is None:
        return None
    try:
        created, _, job_id = base64.urlsafe_b64decode(text.encode()).decode().partition(":")
        return float(int(created)), job_id
    except (ValueError, OverflowError):
        detail = "`cursor` must be a `next_cursor` of an earlier page."
        raise bad_request("invalid-parameter", detail) from None


def _write_cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(f"{position[0]:.0f}:{position[1]}".encode()).decode()


async def _scan(
    services: Services, tenant: str, status: JobState | None, limit: int, after: Position | None
) -> tuple[list[JobRecord], str | None]:
    """Return up to ``limit`` records and where to go on, None at the end of the list."""
    size = limit + 1 if status is None else MAX_PAGE
    found: list[JobRecord] = []
    for _ in range(SCAN_PAGES):
        places = await _places(services, tenant, after, size)
        records = await services.store.records([job_id for _, job_id in places])
        for place, record in zip(places, records, strict=True):
            if len(found) == limit:
                return found, _write_cursor(after or place)
            after = place
            if record is not None and status in (None, record.state):
                found.append(record)
        if len(places) < size:
            return found, None
    return found, _write_cursor(after) if after else None


async def _places(
    services: Services, tenant: str, after: Position | None, size: int
) -> list[Position]:
    """Return the next jobs of the list, newest first; equal times are ordered by ID, downwards."""
    key = services.keys.tenant_jobs(tenant)
    newest = "+inf" if after is None else after[0]
    # Jobs of the cursor's own millisecond come again: fetch that many more, and drop them.
    extra = 0 if after is None else await services.redis.zcount(key, after[0], after[0])
    rows = await services.redis.zrevrangebyscore(
        key, newest, "-inf", 0, size + extra, withscores=True
    )
    places = [(score, member.decode()) for member, score in rows]
    if after is not None:
        places = [place for place in places if place < after]
    return places[:size]
