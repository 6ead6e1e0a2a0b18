"""Cancelling a job, for every door that offers it."""

from common.endings import Choose, cancelled, end_idle
from common.events import Ended
from common.job_record import Snapshot
from common.job_store import Outcome
from common.jobs import JobState
from common.lanes import Lanes
from gateway.relay import job_not_found
from gateway.schemas import CancelledJob
from gateway.services import Services


async def cancel_job(services: Services, tenant: str, job_id: str) -> CancelledJob:
    """Ask for the end of a job; raises ``Problem`` for a missing one.

    The flag is durable first. A job that nobody works on is ended here; the worker of a running
    one is told, and would see the flag with its next append anyway.
    """
    is_own = await services.store.owner(job_id) == tenant
    record = await services.store.record(job_id) if is_own else None
    if record is None:
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
    if await end_idle(services.store, job_id, _end_unless_taken(owner)):
        await Lanes(services.redis, services.keys, record.spec.model).settle(job_id)
        return CancelledJob(job_id, JobState.CANCELLED, "queued")
    # A worker took it meanwhile and sees the flag, or it has just ended.
    latest = await services.store.record(job_id)
    if latest is not None and latest.is_ended:
        return CancelledJob(job_id, latest.state, "already_ended")
    return CancelledJob(job_id, JobState.RUNNING, "running")


def _end_unless_taken(dead_owner: str) -> Choose:
    def choose(snapshot: Snapshot) -> Ended | None:
        record = snapshot.record
        taken = record.state is JobState.RUNNING and record.owner != dead_owner
        return None if taken else cancelled(snapshot)

    return choose
