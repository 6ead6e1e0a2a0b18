"""A job's deadlines: for waiting, for running, for both together. Pure.

``deadline_s`` counts from the moment the job was accepted. So does ``queue_deadline_s``, which is
over with the first start; ``run_deadline_s`` counts from there.
"""

from common.events import ErrorInfo
from common.jobs import JobSpec

GRACE_MS = 2_000  # for the worker that runs an overdue job to end it with its own figures


def due_ms(spec: JobSpec, created_ms: int, deadline_ms: int, *, is_started: bool) -> int:
    """Return when the job's next deadline is. ``deadline_ms`` is the record's."""
    if is_started or spec.queue_deadline_s is None:
        return deadline_ms
    return min(deadline_ms, created_ms + round(spec.queue_deadline_s * 1000))


def is_overdue(due: int, now_ms: int) -> bool:
    """Tell whether the worker had its chance to end a job that was due then: now anybody may."""
    return now_ms >= due + GRACE_MS


def passed(spec: JobSpec, queue_s: float | None) -> ErrorInfo:
    """Return what the end of an overdue job says; ``queue_s`` is None where it never started."""
    if queue_s is None:
        waiting_s = spec.queue_deadline_s
        if waiting_s is not None and waiting_s < spec.deadline_s:
            return _error("queue-deadline", f"did not start within {waiting_s:g} s")
        return _error("deadline", f"did not start within {spec.deadline_s:g} s")
    running_s = spec.run_deadline_s
    if running_s is not None and queue_s + running_s < spec.deadline_s:
        return _error("run-deadline", f"was not done after running for {running_s:g} s")
    return _error("deadline", f"was not done within {spec.deadline_s:g} s")


def _error(type_: str, what: str) -> ErrorInfo:
    return ErrorInfo(type_, f"The job {what}; give it more time, or submit it when less waits.")
