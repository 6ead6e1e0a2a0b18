"""Accepting a job: admit, create the record, put it into a lane, answer."""

import asyncio
import hashlib
import secrets
from dataclasses import dataclass

import msgspec
from redis.exceptions import ResponseError

from common.connections import UNAVAILABLE, is_cluster
from common.deadlines import due_ms
from common.errors import Problem
from common.events import Accepted
from common.job_store import NewJob, Submitted
from common.jobs import ACTIVE, JobSpec, JobState, Sampling
from common.lanes import Affinity, Lanes
from common.limits import Limits
from common.names import idempotent_job_id, random_job_id
from common.settings import Settings
from common.tenant_jobs import TenantJobs
from gateway.identity import Caller
from gateway.prompts import check_stored
from gateway.rate_limits import headers, num_tokens, refusal, too_large
from gateway.reading import check_job_request
from gateway.schemas import JobRequest, SubmittedJob
from gateway.services import Services
from gateway.views import events_url, job_url, rfc3339
from gateway.watch import Subject

FAILED_OVER = "UNBLOCKED"  # what WAITAOF answers when its server is no longer the primary
DISK_S = 3.0  # with `appendfsync everysec` a second or two


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An accepted job. ``subject`` is None where an earlier request with its key had made it.

    ``headers`` tell what the tenant has left.
    """

    job: SubmittedJob
    subject: Subject | None
    headers: dict[str, str]

    @property
    def replayed(self) -> bool:
        """Tell whether an earlier request had made the job."""
        return self.subject is None


async def accept(
    services: Services, caller: Caller, request: JobRequest, idempotency_key: str | None
) -> Acceptance:
    """Make the job durable and let it wait for a worker; raises ``Problem``.

    Both steps are idempotent under the job's ID, so a repeated request finishes what a crashed
    gateway began.
    """
    check_job_request(request)
    if request.durable and is_cluster(services.redis):
        detail = "In a cluster no job can be `durable`; submit it without, or use a single server."
        raise Problem(501, "not-durable", detail)
    tenant, limits = caller.tenant, _limits(services.settings, caller.limits)
    spec = _spec(request, await services.models.choose(request.model), services)
    job_id, is_known = await _name(services, tenant, idempotency_key)
    told: dict[str, str] = {}
    if not is_known:  # what an earlier request has passed may have changed since, perhaps by it
        await check_stored(services, tenant, spec)
        lanes = Lanes(services.redis, services.keys, spec.model)
        told = await _admit(services, lanes, tenant, request, limits)

    new = _new_job(services.settings, tenant, job_id, spec, _fingerprint(request))
    submitted = await _create(services, new)
    if not submitted.created:
        spec = await _stored_spec(services, job_id, spec)
    if submitted.state in ACTIVE:
        lanes = Lanes(services.redis, services.keys, spec.model)
        due = due_ms(spec, submitted.created_ms, submitted.deadline_ms, is_started=False)
        affinity = _affinity(spec, services)
        index = TenantJobs(services.redis, services.keys, services.settings)
        await asyncio.gather(
            lanes.enqueue(job_id, tenant, spec.priority, due, affinity, limits),
            index.add(tenant, job_id, submitted.created_ms),
        )
    services.metrics.jobs_accepted.labels(spec.model).inc(submitted.created)
    if request.durable:
        await _require_disk(services, job_id)
    answer = _answer(job_id, spec.model, submitted)
    subject = Subject(job_id, tenant, submitted.deadline_ms, new.incarnation)
    return Acceptance(answer, subject if submitted.created else None, told)


def _new_job(
    settings: Settings, tenant: str, job_id: str, spec: JobSpec, fingerprint: str
) -> NewJob:
    return NewJob(
        id=job_id,
        tenant=tenant,
        spec=spec,
        fingerprint=fingerprint,
        incarnation=secrets.token_hex(4),
        retention_s=settings.retention_s,
    )


async def _create(services: Services, new: NewJob) -> Submitted:
    """Write the record and event 0, unless an earlier request of the same payload has."""
    submitted = await services.store.submit(new, Accepted(new.id, new.spec.model))
    if submitted.fingerprint != new.fingerprint:
        detail = "This Idempotency-Key was used with another payload; use a new key for a new job."
        raise Problem(422, "idempotency-key-reused", detail)
    return submitted


async def _name(services: Services, tenant: str, idempotency_key: str | None) -> tuple[str, bool]:
    """Return the job's ID, and whether an earlier request has made it."""
    if idempotency_key is None:
        return random_job_id(), False
    job_id = idempotent_job_id(await services.secret.get(), tenant, idempotency_key)
    return job_id, await services.store.position(job_id) is not None


def _limits(settings: Settings, limits: Limits) -> Limits:
    """Return a tenant's limits, the gateway's own where its key does not say."""
    return Limits(
        limits.max_queued or settings.tenant_max_queued,
        limits.max_running or settings.tenant_max_running,
        limits.tokens_per_minute or settings.tenant_tokens_per_minute,
        limits.weight,
    )


async def _admit(
    services: Services, lanes: Lanes, tenant: str, request: JobRequest, limits: Limits
) -> dict[str, str]:
    """Return what the answer tells of the tenant's limits; raises ``Problem`` beyond them."""
    tokens, max_queued = num_tokens(request), services.settings.max_queued
    if problem := too_large(limits, tokens):
        raise problem
    admission = await lanes.admit(tenant, limits, max_queued, tokens)
    if problem := refusal(limits, admission, max_queued):
        services.metrics.jobs_refused.inc()
        raise problem
    return headers(limits, admission)


async def _require_disk(services: Services, job_id: str) -> None:
    """Return once the job is on disk; raises ``Problem`` where it cannot be, or not in time."""
    try:
        is_on_disk = await services.store.reach_disk(job_id, DISK_S)
    except UNAVAILABLE:
        raise
    except ResponseError as error:
        if str(error).startswith(FAILED_OVER):
            raise _not_on_disk(job_id) from error
        detail = (
            "This Redis keeps no append-only file, is older than 7.2, or does not let us ask: job "
            f"{job_id} was accepted, but nothing makes it `durable`."
        )
        raise Problem(501, "not-durable", detail, headers=_place(job_id)) from error
    if not is_on_disk:
        raise _not_on_disk(job_id)


def _place(job_id: str) -> dict[str, str]:
    """Return the headers that say where an accepted job is."""
    return {"Location": job_url(job_id), "X-Job-Id": job_id}


def _not_on_disk(job_id: str) -> Problem:
    detail = (
        "The job was accepted, but Redis has not got it on disk yet; repeat the request with "
        "its Idempotency-Key."
    )
    return Problem(503, "not-on-disk", detail, retry_after_s=1, headers=_place(job_id))


def _affinity(spec: JobSpec, services: Services) -> Affinity | None:
    if spec.prompt_id is None:
        return None
    return Affinity(spec.prompt_id, services.settings.affinity_patience_s)


def _spec(request: JobRequest, model: str, services: Services) -> JobSpec:
    longest = services.settings.max_deadline_s
    deadline_s = longest if request.deadline_s is None else request.deadline_s
    if deadline_s > longest:
        detail = f"`deadline_s` may be {longest:g} at most here, not {deadline_s:g}."
        raise Problem(400, "invalid-request", detail)
    return JobSpec(
        model=model,
        max_tokens=request.max_tokens,
        prompt=request.prompt,
        messages=request.messages,
        sampling=_sampling(request),
        stop=(request.stop,) if isinstance(request.stop, str) else request.stop,
        priority=request.priority,
        deadline_s=deadline_s,
        prompt_id=request.prompt_id,
        metadata=request.metadata,
        append=request.append,
        if_version=request.if_version,
        stop_token_ids=request.stop_token_ids,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        n=request.n,
        logprobs=request.logprobs,
        echo=request.echo,
        allow_reset=request.allow_reset,
        queue_deadline_s=request.queue_deadline_s,
        run_deadline_s=request.run_deadline_s,
    )


def _sampling(request: JobRequest) -> Sampling:
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=request.logit_bias,
    )


def _fingerprint(request: JobRequest) -> str:
    """Return what tells one payload from another; how the answer is delivered is no part of it."""
    payload = msgspec.structs.replace(request, stream=False)
    # JSON's own keys are strings; only those can be sorted.
    canonical = msgspec.json.encode(msgspec.to_builtins(payload, str_keys=True), order="sorted")
    return hashlib.sha256(canonical).hexdigest()


async def _stored_spec(services: Services, job_id: str, fallback: JobSpec) -> JobSpec:
    record = await services.store.record(job_id)
    return record.spec if record is not None else fallback


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
