"""Accepting a job: admit, create the record, put it into a lane, answer."""

import hashlib
import secrets
from dataclasses import dataclass

import msgspec

from common.errors import Problem
from common.events import Accepted
from common.job_store import NewJob, Submitted
from common.jobs import ACTIVE, JobSpec, JobState, Sampling
from common.lanes import Lanes
from common.names import idempotent_job_id, random_job_id
from gateway.reading import check_job_request
from gateway.schemas import JobRequest, SubmittedJob
from gateway.services import Services
from gateway.views import events_url, job_url, rfc3339

INDEX_MARGIN_S = 3_600


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An accepted job. ``replayed``: an earlier request with the same key had created it."""

    job: SubmittedJob
    replayed: bool


async def accept(
    services: Services, tenant: str, request: JobRequest, idempotency_key: str | None
) -> Acceptance:
    """Make the job durable and let it wait for a worker; raises ``Problem``.

    Both steps are idempotent under the job's ID, so a repeated request finishes what a crashed
    gateway began.
    """
    check_job_request(request)
    job_id = random_job_id()
    if idempotency_key is not None:
        job_id = idempotent_job_id(await services.secret.get(), tenant, idempotency_key)
    spec = _spec(request, await _choose_model(services, request.model), services)
    lanes = Lanes(services.redis, services.keys, spec.model)
    await _admit(services, lanes, job_id if idempotency_key else None)

    new = NewJob(
        id=job_id,
        tenant=tenant,
        spec=spec,
        fingerprint=_fingerprint(request),
        incarnation=secrets.token_hex(4),
        retention_s=services.settings.retention_s,
    )
    submitted = await services.store.submit(new, Accepted(job_id, spec.model))
    if submitted.fingerprint != new.fingerprint:
        detail = "This Idempotency-Key was used with another payload; use a new key for a new job."
        raise Problem(422, "idempotency-key-reused", detail)
    if not submitted.created:
        spec = await _stored_spec(services, job_id, spec)
    if submitted.state in ACTIVE:
        lanes = Lanes(services.redis, services.keys, spec.model)
        await lanes.enqueue(job_id, tenant, spec.priority, submitted.deadline_ms)
        await _index(services, tenant, job_id, submitted)
    services.metrics.jobs_accepted.labels(spec.model).inc(submitted.created)
    return Acceptance(_answer(job_id, spec.model, submitted), replayed=not submitted.created)


async def _choose_model(services: Services, wanted: str | None) -> str:
    default = services.settings.default_model
    known = await services.registry.models()
    if wanted is not None:
        if wanted not in known and wanted != default:
            names = ", ".join(sorted(known)[:10]) or "none yet"
            detail = f"No worker serves the model {wanted!r}; known models: {names}."
            raise Problem(404, "model-not-found", detail)
        return wanted
    if default:
        return default
    if not known:
        detail = "No worker has registered a model yet; start one with `headrace worker`."
        raise Problem(503, "no-model", detail, retry_after_s=5)
    return max(known, key=lambda name: known[name])


async def _admit(services: Services, lanes: Lanes, known_id: str | None) -> None:
    limit = services.settings.max_queued
    if await lanes.unfinished() < limit:
        return
    if known_id is not None and await services.store.position(known_id) is not None:
        return  # a repeated request adds nothing
    services.metrics.jobs_refused.inc()
    detail = f"{limit} jobs of this model are unfinished, which is the limit; try again later."
    raise Problem(429, "too-many-jobs", detail, retry_after_s=5)


def _spec(request: JobRequest, model: str, services: Services) -> JobSpec:
    longest = services.settings.max_deadline_s
    deadline_s = longest if request.deadline_s is None else request.deadline_s
    if deadline_s > longest:
        detail = f"`deadline_s` may be {longest:g} at most here, not {deadline_s:g}."
        raise Problem(400, "invalid-request", detail)
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return JobSpec(
        model=model,
        max_tokens=request.max_tokens,
        prompt=request.prompt,
        messages=request.messages,
        sampling=Sampling(request.temperature, request.top_p, request.top_k, seed),
        stop=(request.stop,) if isinstance(request.stop, str) else request.stop,
        priority=request.priority,
        deadline_s=deadline_s,
        prompt_id=request.prompt_id,
        metadata=request.metadata,
    )


def _fingerprint(request: JobRequest) -> str:
    """Return what tells one payload from another; how the answer is delivered is no part of it."""
    canonical = msgspec.json.encode(msgspec.structs.replace(request, stream=False), order="sorted")
    return hashlib.sha256(canonical).hexdigest()


async def _stored_spec(services: Services, job_id: str, fallback: JobSpec) -> JobSpec:
    record = await services.store.record(job_id)
    return record.spec if record is not None else fallback


async def _index(services: Services, tenant: str, job_id: str, submitted: Submitted) -> None:
    """Put the job on its tenant's list, and let the list forget what retention has ended."""
    settings = services.settings
    lifetime_s = settings.max_deadline_s + settings.retention_s + INDEX_MARGIN_S
    key = services.keys.tenant_jobs(tenant)
    async with services.redis.pipeline(transaction=False) as pipeline:
        pipeline.zadd(key, {job_id: submitted.created_ms})
        pipeline.zremrangebyscore(key, "-inf", submitted.created_ms - lifetime_s * 1000)
        pipeline.expire(key, round(lifetime_s))
        await pipeline.execute()


def _answer(job_id: str, model: str, submitted: Submitted) -> SubmittedJob:
    """Return what was answered when the job was new, also to a repeated request."""
    return SubmittedJob(
        id=job_id,
        status=JobState.QUEUED,
        model=model,
        created_at=rfc3339(submitted.created_ms),
        url=job_url(job_id),
        events_url=events_url(job_id),
    )
