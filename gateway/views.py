"""Job records as clients see them. Pure."""

from datetime import UTC, datetime

import msgspec

from common.endings import usage_so_far
from common.events import Ended, Usage, decode_event, is_terminal
from common.job_record import JobRecord, Snapshot
from common.registry import LiveWorker
from gateway.answers import choice_views
from gateway.schemas import JobView, WorkerView


def job_url(job_id: str) -> str:
    """Return the job's own path."""
    return f"/v1/jobs/{job_id}"


def events_url(job_id: str) -> str:
    """Return the path of the job's event stream."""
    return f"/v1/jobs/{job_id}/events"


def rfc3339(milliseconds: int) -> str:
    """Return a UTC time with milliseconds."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_view(snapshot: Snapshot) -> JobView:
    """Return a job with its answers."""
    record, events = snapshot.record, snapshot.events
    choices = choice_views(record.spec, events, _end(record))
    return msgspec.structs.replace(
        _view(record, usage=usage_so_far(events)),
        text=choices[0].text,
        logprobs=choices[0].logprobs,
        choices=choices if len(choices) > 1 else msgspec.UNSET,
    )


def job_summary(record: JobRecord) -> JobView:
    """Return a job for a list: without its answers."""
    return _view(record)


def _view(record: JobRecord, *, usage: Usage | None = None) -> JobView:
    end = _end(record)
    return JobView(
        id=record.id,
        status=record.state,
        model=record.spec.model,
        priority=record.spec.priority,
        created_at=rfc3339(record.created_ms),
        started_at=rfc3339(record.started_ms) if record.started_ms else None,
        finished_at=rfc3339(record.finished_ms) if record.finished_ms else None,
        deadline_at=rfc3339(record.deadline_ms),
        attempts=record.attempts,
        worker=(end.worker if end else record.owner) or None,
        finish_reason=end.finish_reason if end else None,
        is_eos=end.is_eos if end else None,
        usage=end.usage if end else usage,
        timings=end.timings if end else None,
        error=end.error if end else None,
        metadata=record.spec.metadata,
        events_url=events_url(record.id),
        prompt_version=(end.prompt_version or None) if end else None,
    )


def _end(record: JobRecord) -> Ended | None:
    if record.result is None:
        return None
    event = decode_event(record.result)
    assert is_terminal(event)
    return event  # type: ignore[return-value] # is_terminal just said so


def worker_view(worker: LiveWorker, lease_s: float) -> WorkerView:
    """Return a live worker."""
    info = worker.info
    return WorkerView(
        **msgspec.structs.asdict(info),
        load=round(info.running / info.capacity, 3),
        lease_age_s=round(max(0.0, lease_s - worker.lease_s), 3),
    )
