"""Jobs and workers for tests, with every field filled in and the telling ones as arguments."""

from common.events import Accepted, Completed, Failed, Started, Tokens, encode_event
from common.job_record import JobRecord
from common.job_store import Append, JobStore, NewJob, Outcome
from common.jobs import FinishReason, JobSpec
from common.names import random_job_id
from common.registry import WorkerInfo, WorkerState

MODEL = "tiny"
TENANT = "acme"
RETENTION_S = 600.0
RETENTION_MS = 600_000
STOPPED = Completed(FinishReason.STOP, is_eos=True)
BROKEN = Failed(FinishReason.ERROR)


def make_job(
    job_id: str = "",
    *,
    fingerprint: str = "f",
    incarnation: str = "i",
    deadline_s: float = 60.0,
    tenant: str = TENANT,
    model: str = MODEL,
) -> NewJob:
    """Return a job to submit, with an ID of its own unless one is given."""
    spec = JobSpec(model=model, max_tokens=8, prompt="Once", deadline_s=deadline_s)
    return NewJob(
        id=job_id or random_job_id(),
        tenant=tenant,
        spec=spec,
        fingerprint=fingerprint,
        incarnation=incarnation,
        retention_s=RETENTION_S,
    )


def make_worker(worker_id: str, model: str = MODEL) -> WorkerInfo:
    """Return what an idle worker says of itself."""
    return WorkerInfo(
        id=worker_id,
        host="here",
        pid=1,
        model=model,
        version="0.1.0",
        engine="fake",
        device="cpu",
        dtype="float32",
        state=WorkerState.IDLE,
        progress="",
        capacity=4,
        running=0,
        context_len=2048,
        tokens_per_s=0.0,
    )


def make_payloads(*texts: str) -> tuple[bytes, ...]:
    """Return one encoded ``tokens`` event per text."""
    return tuple(encode_event(Tokens(0, (1,), text)) for text in texts)


async def submit(store: JobStore, job: NewJob | None = None) -> JobRecord:
    """Submit the job, or a new one, and return its record."""
    job = job or make_job()
    await store.submit(job, Accepted(job.id, job.spec.model))
    return await read(store, job.id)


async def read(store: JobStore, job_id: str) -> JobRecord:
    """Return the record of a job that must be there."""
    record = await store.record(job_id)
    assert record
    return record


async def start(store: JobStore, job_id: str, worker_id: str = "w1") -> int:
    """Let the worker take the job as it stands; returns its epoch."""
    record = await read(store, job_id)
    started = Started(worker_id, record.attempts + 1)
    outcome, epoch, _ = await store.start(record, worker_id, started)
    assert outcome is Outcome.OK
    return epoch


async def append(
    store: JobStore, job_id: str, epoch: int, n: int, *texts: str
) -> tuple[Outcome, int]:
    """Append one ``tokens`` event per text, the first with number ``n``."""
    [answer] = await store.append([Append(job_id, epoch, n, make_payloads(*texts))])
    return answer
