"""The job record as it is read, and the log with it."""

from dataclasses import dataclass

import msgspec

from common.deadlines import due_ms
from common.events import Event
from common.jobs import TERMINAL, JobSpec, JobState, decode_spec


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The job record as read. Times are milliseconds of Redis's clock, 0 = not yet."""

    id: str
    tenant: str
    incarnation: str
    spec: JobSpec
    state: JobState
    epoch: int
    next: int
    attempts: int
    losses: int
    owner: str
    cancel: bool
    created_ms: int
    started_ms: int
    finished_ms: int
    deadline_ms: int
    retention_ms: int
    result: bytes | None
    base: bytes = b""
    """The stored sequence that the job builds on (packed token IDs), from first start to end."""

    @property
    def is_ended(self) -> bool:
        """Tell whether the terminal event is in the log."""
        return self.state in TERMINAL

    @property
    def queue_s(self) -> float | None:
        """How long it waited for its first start, None before that."""
        return (self.started_ms - self.created_ms) / 1000 if self.started_ms else None

    @property
    def due_ms(self) -> int:
        """When its next deadline is."""
        is_started = self.started_ms > 0
        return due_ms(self.spec, self.created_ms, self.deadline_ms, is_started=is_started)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A record with its log: ``events[n]`` is event ``n``, ``payloads[n]`` its bytes."""

    record: JobRecord
    payloads: tuple[bytes, ...]
    events: tuple[Event, ...]
    read_ms: int = 0  # when it was read, by Redis's clock


def read_record(job_id: str, fields: dict[bytes, bytes]) -> JobRecord:
    """Return the record of a hash; raises ``msgspec.MsgspecError`` where it cannot be read."""

    def number(name: bytes) -> int:
        return msgspec.convert(fields.get(name, b"0").decode(), int, strict=False)

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode()

    return JobRecord(
        id=job_id,
        tenant=text(b"tenant"),
        incarnation=text(b"incarnation"),
        spec=decode_spec(fields.get(b"spec", b"")),
        state=msgspec.convert(text(b"state"), JobState),
        epoch=number(b"epoch"),
        next=number(b"next"),
        attempts=number(b"attempts"),
        losses=number(b"losses"),
        owner=text(b"owner"),
        cancel=b"cancel" in fields,
        created_ms=number(b"created_ms"),
        started_ms=number(b"started_ms"),
        finished_ms=number(b"finished_ms"),
        deadline_ms=number(b"deadline_ms"),
        retention_ms=number(b"retention_ms"),
        result=fields.get(b"result"),
        base=fields.get(b"base", b""),
    )
