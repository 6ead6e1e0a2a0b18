"""The doors of ``/v1/jobs``: submit, read, list, cancel."""

import asyncio
import base64
import math

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from common.endings import Choose, cancelled, end_idle
from common.events import Ended
from common.job_store import JobRecord, Outcome, Snapshot
from common.jobs import JobState
from gateway.event_stream import open_stream
from gateway.reading import (
    bad_request,
    decode_json,
    read_body,
    read_idempotency_key,
    read_job_id,
    read_number,
    read_seconds,
)
from gateway.relay import is_overdue, job_not_found
from gateway.replies import json_response
from gateway.schemas import CancelledJob, JobList, JobRequest
from gateway.services import Services, services_of, tenant_of
from gateway.submission import accept
from gateway.views import job_summary, job_url, job_view
from gateway.watch import Signal

MAX_WAIT_S = 300.0
MAX_PAGE = 200
_decoder = msgspec.json.Decoder(JobRequest)

SCAN_PAGES = 20  # of MAX_PAGE records: how far one request looks for a rare status


async def submit(request: Request) -> Response:
    """``POST /v1/jobs``: 202 with the job, or 200 with its event stream."""
    services, tenant = services_of(request), tenant_of(request)
    body = await read_body(request, services.settings.max_body_bytes)
    job = decode_json(body, _decoder)
    key = read_idempotency_key(request.headers.get("idempotency-key"))
    acceptance = await accept(services, tenant, job, key)
    accepted = acceptance.job
    if job.stream or "text/event-stream" in request.headers.get("accept", ""):
        return await open_stream(services, tenant, accepted.id, after=-1)
    headers = {"Location": job_url(accepted.id), "X-Job-Id": accepted.id}
    if acceptance.replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_response(accepted, 202, headers)


async def show(request: Request) -> Response:
    """``GET /v1/jobs/{id}``: the job as it stands; ``?wait=`` holds the answer until it ends."""
    services, tenant = services_of(request), tenant_of(request)
    job_id = read_job_id(request.path_params["job_id"])
    wait_s = read_seconds("wait", request.query_params.get("wait", "0"), MAX_WAIT_S)
    if wait_s:
        await _wait_for_end(services, tenant, job_id, wait_s)
    return json_response(job_view(await _snapshot(services, tenant, job_id)))


async def listing(request: Request) -> Response:
    """``GET /v1/jobs``: newest first, by page."""
    services, tenant = services_of(request), tenant_of(request)
    query = request.query_params
    limit = read_number("limit", query.get("limit", "50"), 1, MAX_PAGE)
    status = _read_status(query.get("status"))
    records, cursor = await _scan(services, tenant, status, limit, _read_cursor(query))
    return json_response(JobList([job_summary(record) for record in records], cursor))


async def cancel(request: Request) -> Response:
    """``DELETE /v1/jobs/{id}``: cancel; says whether it met the job waiting, running or ended."""
    services, tenant = services_of(request), tenant_of(request)
    job_id = read_job_id(request.path_params["job_id"])
    return json_response(await cancel_job(services, tenant, job_id))


async def cancel_job(services: Services, tenant: str, job_id: str) -> CancelledJob:
    """Ask for the end of a job; raises ``Problem`` for a missing one.

    The flag is durable first. A job that nobody works on is ended here; the worker of a running
    one is told, and would see the flag with its next append anyway.
    """
    record = await services.store.record(job_id)
    if record is None or record.tenant != tenant:
        raise job_not_found(job_id)
    outcome, state, owner = await services.store.cancel(job_id)
    services.metrics.jobs_cancelled.inc()
    if outcome is Outcome.GONE or state is None:
        raise job_not_found(job_id)
    if outcome is Outcome.CLOSED:
        return CancelledJob(job_id, state, "already_ended")
    if state is JobState.RUNNING and await services.registry.is_alive(record.spec.model, owner):
        await services.redis.publish(services.keys.worker_ctl(owner), job_id)
        return CancelledJob(job_id, state, "running")
    ended = await end_idle(services.store, job_id, _end_unless_taken(owner))
    if ended:
        return CancelledJob(job_id, JobState.CANCELLED, "queued")
    return CancelledJob(job_id, state, "running")  # a worker took it meanwhile and sees the flag


def _end_unless_taken(dead_owner: str) -> Choose:
    def choose(snapshot: Snapshot) -> Ended | None:
        record = snapshot.record
        taken = record.state is JobState.RUNNING and record.owner != dead_owner
        return None if taken else cancelled(snapshot)

    return choose


async def _snapshot(services: Services, tenant: str, job_id: str) -> Snapshot:
    snapshot = await services.store.snapshot(job_id)
    if snapshot is None or snapshot.record.tenant != tenant:
        raise job_not_found(job_id)
    now_ms = await services.registry.now_ms()
    if is_overdue(snapshot.record, now_ms):
        await services.relay.end_overdue(job_id, now_ms)
        return await services.store.snapshot(job_id) or snapshot
    return snapshot


async def _wait_for_end(services: Services, tenant: str, job_id: str, wait_s: float) -> None:
    signal = Signal()
    cursor = await services.relay.open(tenant, job_id, 0, signal.set)
    hold = _Hold(signal)
    services.streams.add(hold)
    try:
        async with asyncio.timeout(wait_s):
            while not cursor.watch.transcript.ended and not services.streams.draining:
                if cursor.watch.failure is not None:
                    raise cursor.watch.failure
                await signal.wait()
    except TimeoutError:
        return
    finally:
        services.streams.remove(hold)
        await services.relay.close(cursor)


class _Hold:
    """An answer that is held back, as the gateway's clock sees it: only a drain concerns it."""

    sent_at = math.inf
    sending_since = 0.0

    def __init__(self, signal: Signal) -> None:
        self.drain = signal.set

    def ping(self) -> None:
        pass

    def cut(self) -> None:
        pass


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
    found: list[JobRecord] = []
    for _ in range(SCAN_PAGES):
        places = await _places(services, tenant, after)
        records = await services.store.records([job_id for _, job_id in places])
        for place, record in zip(places, records, strict=True):
            if len(found) == limit:
                return found, _write_cursor(after or place)
            after = place
            if record is not None and status in (None, record.state):
                found.append(record)
        if len(places) < MAX_PAGE:
            return found, None
    return found, _write_cursor(after) if after else None


async def _places(services: Services, tenant: str, after: Position | None) -> list[Position]:
    """Return the next jobs of the list, newest first; equal times are ordered by ID, downwards."""
    key = services.keys.tenant_jobs(tenant)
    newest = "+inf" if after is None else after[0]
    # Jobs of the cursor's own millisecond come again: fetch that many more, and drop them.
    extra = 0 if after is None else await services.redis.zcount(key, after[0], after[0])
    rows = await services.redis.zrevrangebyscore(
        key, newest, "-inf", 0, MAX_PAGE + extra, withscores=True
    )
    places = [(score, member.decode()) for member, score in rows]
    if after is not None:
        places = [place for place in places if place < after]
    return places[:MAX_PAGE]
