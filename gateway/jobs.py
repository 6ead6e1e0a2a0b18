"""The doors of one job: submit, read, cancel."""

import asyncio
import contextlib
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from common.connections import UNAVAILABLE
from common.deadlines import is_overdue
from common.endings import end_if_overdue
from common.errors import Problem
from common.job_record import Snapshot
from gateway.cancellation import cancel_job
from gateway.event_stream import open_new_stream, open_stream
from gateway.links import Link
from gateway.reading import (
    decode_json,
    read_body,
    read_idempotency_key,
    read_job_id,
    read_number,
    read_seconds,
)
from gateway.relay import job_not_found
from gateway.replies import json_response
from gateway.schemas import JobRequest, LinkView
from gateway.services import Services, caller_of, services_of, tenant_of
from gateway.streams import Hold
from gateway.submission import accept
from gateway.views import events_url, job_url, job_view, rfc3339
from gateway.watch import Signal

MAX_WAIT_S = 300.0
LINK_TTL_S, MAX_LINK_TTL_S = 600, 86_400

_decoder = msgspec.json.Decoder(JobRequest)


async def submit(request: Request) -> Response:
    """``POST /v1/jobs``: 202 with the job, or 200 with its event stream."""
    services, caller = services_of(request), caller_of(request)
    body = await read_body(request, services.settings.max_body_bytes)
    job = decode_json(body, _decoder)
    key = read_idempotency_key(request.headers.get("idempotency-key"))
    acceptance = await accept(services, caller, job, key)
    accepted = acceptance.job
    if job.stream or "text/event-stream" in request.headers.get("accept", ""):
        # The job is accepted by now: where its stream cannot be had, the answer is still 202.
        with contextlib.suppress(Problem, *UNAVAILABLE):
            if acceptance.subject is not None:
                return await open_new_stream(services, acceptance.subject)
            return await open_stream(services, caller.tenant, accepted.id, after=-1)
    headers = {**acceptance.headers, "Location": job_url(accepted.id), "X-Job-Id": accepted.id}
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


async def cancel(request: Request) -> Response:
    """``DELETE /v1/jobs/{id}``: cancel; says whether it met the job waiting, running or ended."""
    services, tenant = services_of(request), tenant_of(request)
    job_id = read_job_id(request.path_params["job_id"])
    return json_response(await cancel_job(services, tenant, job_id))


async def link(request: Request) -> Response:
    """``POST /v1/jobs/{id}/link``: the address of its events, for who cannot send headers."""
    services, tenant = services_of(request), tenant_of(request)
    job_id = read_job_id(request.path_params["job_id"])
    given = request.query_params.get("ttl", str(LINK_TTL_S))
    ttl_s = read_number("ttl", given, 1, MAX_LINK_TTL_S)
    if await services.store.owner(job_id) != tenant:
        raise job_not_found(job_id)
    expires = int(time.time()) + ttl_s
    proof = await services.links.sign(Link(tenant, job_id, expires))
    url = f"{events_url(job_id)}?link={proof}"
    return json_response(LinkView(url, rfc3339(1000 * expires)))


async def _snapshot(services: Services, tenant: str, job_id: str) -> Snapshot:
    is_own = await services.store.owner(job_id) == tenant
    snapshot = await services.store.snapshot(job_id) if is_own else None
    if snapshot is None:
        raise job_not_found(job_id)
    now_ms = await services.registry.now_ms()
    if not snapshot.record.is_ended and is_overdue(snapshot.record.due_ms, now_ms):
        await end_if_overdue(services.store, job_id, now_ms)
        return await services.store.snapshot(job_id) or snapshot
    return snapshot


async def _wait_for_end(services: Services, tenant: str, job_id: str, wait_s: float) -> None:
    signal = Signal()
    cursor = await services.relay.open(tenant, job_id, 0, signal.set)
    hold = Hold(signal.set)
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
