"""Ends for jobs that nobody works on: cancelled in the queue, past their deadline, out of workers.

The end of a running job is its worker's to write. These are written with the epoch and the length
of the log as they were read, so whoever moved the job in between wins.
"""

from collections.abc import Callable, Sequence

import msgspec

from common.dead_letters import UNREADABLE, WORKER_LOST
from common.deadlines import GRACE_MS, is_overdue, passed
from common.emitted import num_emitted
from common.events import Cancelled, Ended, ErrorInfo, Event, Expired, Failed, Usage
from common.job_record import JobRecord, Snapshot
from common.job_store import JobStore, Outcome
from common.jobs import FinishReason, JobState
from common.lanes import Lanes

_TRIES = 8
_SETTLED = (Outcome.OK, Outcome.CLOSED, Outcome.GONE)

Choose = Callable[[Snapshot], Ended | None]


def usage_so_far(events: Sequence[Event]) -> Usage:
    """Return what the log knows of a job's tokens; only its worker knows the prompt's."""
    return Usage(completion_tokens=num_emitted(events))


def cancelled(snapshot: Snapshot) -> Cancelled:
    """Return the end of a job that was cancelled while it waited."""
    usage = usage_so_far(snapshot.events)
    return Cancelled(FinishReason.CANCELLED, usage=usage, attempts=snapshot.record.attempts)


def expired(snapshot: Snapshot) -> Expired:
    """Return the end of a job whose deadline passed while it waited."""
    record = snapshot.record
    return Expired(
        FinishReason.EXPIRED,
        usage=usage_so_far(snapshot.events),
        attempts=record.attempts,
        error=passed(record.spec, record.queue_s),
    )


def worker_lost(snapshot: Snapshot) -> Failed:
    """Return the end of a job that has lost too many workers."""
    record = snapshot.record
    detail = (
        f"The job lost its worker {record.losses} times and was given up; "
        "submit it again, and look at the workers' logs if it happens again."
    )
    return Failed(
        FinishReason.ERROR,
        usage=usage_so_far(snapshot.events),
        attempts=record.attempts,
        error=ErrorInfo(WORKER_LOST, detail),
    )


def num_losses(record: JobRecord, worker_id: str) -> int:
    """Return how many workers the job has lost, as ``worker_id`` sees it that would take it now."""
    return record.losses + (record.state is JobState.RUNNING and record.owner != worker_id)


def choose_end(
    snapshot: Snapshot, now_ms: int, max_losses: int | None = None, worker_id: str = ""
) -> Ended | None:
    """Return the end that a job must get instead of a start by this worker, or None.

    Without ``max_losses`` nobody gives the job up for its lost workers.
    """
    record = snapshot.record
    losses = num_losses(record, worker_id)
    if record.cancel:
        return cancelled(snapshot)
    if now_ms >= record.due_ms:
        return expired(snapshot)
    return worker_lost(snapshot) if max_losses is not None and losses >= max_losses else None


async def end_idle(store: JobStore, job_id: str, choose: Choose) -> bool:
    """End a job that nobody works on, if ``choose`` finds an end for it as it stands.

    True when this call wrote the end; False when the job has one, is gone, needs none, or keeps
    moving under somebody who will see its cancel flag and its deadline.
    """
    for _ in range(_TRIES):
        snapshot = await store.snapshot(job_id)
        if snapshot is None or snapshot.record.is_ended:
            return False
        end = choose(snapshot)
        if end is None:
            return False
        record = snapshot.record
        position = (record.epoch, record.next)
        outcome, _ = await store.finish(job_id, position, end, record.retention_ms)
        if outcome in _SETTLED:
            return outcome is Outcome.OK
    return False


async def end_unreadable(store: JobStore, job_id: str, error: Exception) -> bool:
    """End a job whose record or log this version cannot read: nobody else should trip over it.

    True when this call wrote the end.
    """
    detail = f"The job's record cannot be read by this version of Headrace: {error}"
    end = Failed(FinishReason.ERROR, error=ErrorInfo(UNREADABLE, detail))
    for _ in range(_TRIES):
        position = await store.position(job_id)
        if position is None:
            return False
        epoch, next_n, retention_ms = position
        outcome, _ = await store.finish(job_id, (epoch, next_n), end, retention_ms)
        if outcome in _SETTLED:
            return outcome is Outcome.OK
    return False


async def end_if_overdue(store: JobStore, job_id: str, now_ms: int) -> bool:
    """End a job that is overdue as it stands now; True when this call wrote the end.

    One that cannot be read ends whatever its deadline: ask only for a job that was seen overdue.
    It counts as unfinished until the sweep meets it, which does so whoever wrote the end.
    """

    def choose(latest: Snapshot) -> Ended | None:
        return choose_end(latest, now_ms) if is_overdue(latest.record.due_ms, now_ms) else None

    try:
        return await end_idle(store, job_id, choose)
    except msgspec.MsgspecError as error:
        return await end_unreadable(store, job_id, error)


async def end_overdue(store: JobStore, lanes: Lanes, now_ms: int) -> None:
    """End the model's jobs whose deadline has passed, bounded; their entries go when claimed."""
    for job_id in await lanes.overdue(now_ms - GRACE_MS):
        await end_if_overdue(store, job_id, now_ms)
        deadline_ms = await store.deadline_ms(job_id)
        if deadline_ms is None:
            await lanes.settle(job_id)
        else:  # it started in time; or it moves, and who moves it sees its deadline
            await lanes.postpone(job_id, deadline_ms)
