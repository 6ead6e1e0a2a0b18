"""The job record and its log: typed callers of the scripts that change them."""

import enum
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from common.events import STATE_OF_END, Ended, Event, Retrying, decode_event, encode_event
from common.job_record import JobRecord, Snapshot, read_record
from common.jobs import ACTIVE, JobSpec, JobState, encode_spec
from common.keys import JobKeys, Keys
from common.scripts import Argument, Script

_log = structlog.get_logger()

LOG_PAGE = 1024

_SUBMIT = Script("submit", shared=("clock",))
_START = Script("start", shared=("clock", "events"))
_APPEND = Script("append", shared=("clock", "events"))
_FINISH = Script("finish", shared=("clock", "events"))
_REQUEUE = Script("requeue", shared=("events",))
_CANCEL = Script("cancel")
_MARK_DURABLE = Script("mark_durable")


class Outcome(enum.StrEnum):
    """What a script says of a job."""

    OK = "OK"
    STALE = "STALE"
    GAP = "GAP"
    CANCEL = "CANCEL"
    EXPIRED = "EXPIRED"
    FENCED = "FENCED"
    CLOSED = "CLOSED"
    GONE = "GONE"


LOST = frozenset({Outcome.FENCED, Outcome.CLOSED, Outcome.GONE})
"""Somebody else owns the job, or nobody: stop, write nothing."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to create. ``fingerprint`` tells a repeated request from another one."""

    id: str
    tenant: str
    spec: JobSpec
    fingerprint: str
    incarnation: str
    retention_s: float


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job as it stands after ``submit``. Times are milliseconds of Redis's clock."""

    created: bool
    fingerprint: str
    state: JobState
    created_ms: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one job to append under its epoch, the first with number ``n``.

    The terminal event, where there is one, comes behind them.
    """

    job_id: str
    epoch: int
    n: int
    payloads: tuple[bytes, ...]
    end: Ended | None = None
    retention_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    script: Script
    keys: list[str]
    args: list[Argument]


class JobStore:
    """All state changes of a job's record and log. Raises redis-py's errors unchanged."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def submit(self, job: NewJob, accepted: Event) -> Submitted:
        """Create the job with event 0, or return the one that has its ID."""
        keys = self._keys.job(job.id)
        fields: dict[str, bytes | str | int] = {
            "tenant": job.tenant,
            "model": job.spec.model,
            "incarnation": job.incarnation,
            "spec": encode_spec(job.spec),
            "retention_ms": round(job.retention_s * 1000),
        }
        args: list[Argument] = [
            keys.live,
            job.fingerprint,
            round(job.spec.deadline_s * 1000),
            round(job.retention_s * 1000),
            encode_event(accepted),
            *(part for field in fields.items() for part in field),
        ]
        reply = await _SUBMIT.run(self._redis, [keys.record, keys.log], args)
        return Submitted(
            created=reply[0] == b"CREATED",
            fingerprint=reply[1].decode(),
            state=JobState(reply[2].decode()),
            created_ms=int(reply[3]),
            deadline_ms=int(reply[4]),
        )

    async def start(
        self, record: JobRecord, worker_id: str, started: Event, base: bytes = b""
    ) -> tuple[Outcome, int, float]:
        """Take the job as it was read; returns the outcome, the new epoch and the queue time (s).

        ``STALE`` means that the job changed since it was read. A ``base`` is kept in the record, so
        that every later start builds on the same one.
        """
        keys = self._keys.job(record.id)
        run_s = record.spec.run_deadline_s
        args: list[Argument] = [
            keys.live,
            worker_id,
            record.epoch,
            record.next,
            encode_event(started),
            base,
            "" if run_s is None else round(run_s * 1000),
        ]
        reply = await _START.run(self._redis, [keys.record, keys.log], args)
        outcome = Outcome(reply[0].decode())
        if outcome is not Outcome.OK:
            return outcome, 0, 0.0
        return outcome, int(reply[1]), int(reply[2]) / 1000

    async def append(self, appends: Sequence[Append]) -> list[tuple[Outcome, int]]:
        """Append the events of many jobs in one round trip; returns (outcome, log's next) each.

        The outcome of one with an end is that of ``finish``.
        """
        calls = [self._append_calls(item) for item in appends]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in chain.from_iterable(calls):
                call.script.add_to(pipeline, call.keys, call.args)
            replies = iter(await pipeline.execute(raise_on_error=False))
        answers = [[(call, next(replies)) for call in some] for some in calls]
        return [await self._append_answer(some) for some in answers]

    def _append_calls(self, item: Append) -> list[_Call]:
        keys = self._keys.job(item.job_id)
        names = [keys.record, keys.log]
        calls: list[_Call] = []
        if item.payloads or item.end is None:
            calls.append(_Call(_APPEND, names, [keys.live, item.epoch, item.n, *item.payloads]))
        if item.end is not None:
            position = (item.epoch, item.n + len(item.payloads))
            calls.append(self._finish_call(item.job_id, position, item.end, item.retention_ms))
        return calls

    async def _append_answer(self, answers: Iterable[tuple[_Call, Any]]) -> tuple[Outcome, int]:
        """Return what the last script of a job says: an end after a gap is one, too."""
        for call, answer in answers:
            reply = answer
            if isinstance(reply, NoScriptError):
                reply = await call.script.run(self._redis, call.keys, call.args)
            if isinstance(reply, Exception):
                raise reply
        return Outcome(reply[0].decode()), int(reply[1])

    async def finish(
        self, job_id: str, position: tuple[int, int], end: Ended, retention_ms: int
    ) -> tuple[Outcome, int]:
        """Write the terminal event at ``position`` (epoch, n); returns (outcome, log's next).

        ``STALE``: the log is longer than the caller knew. ``CLOSED``: the job has its end already.
        """
        call = self._finish_call(job_id, position, end, retention_ms)
        reply = await call.script.run(self._redis, call.keys, call.args)
        return Outcome(reply[0].decode()), int(reply[1])

    def _finish_call(
        self, job_id: str, position: tuple[int, int], end: Ended, retention_ms: int
    ) -> _Call:
        keys = self._keys.job(job_id)
        state = STATE_OF_END[type(end)]
        args: list[Argument] = [keys.live, *position, state, retention_ms, encode_event(end)]
        return _Call(_FINISH, [keys.record, keys.log], args)

    async def reach_disk(self, job_id: str, timeout_s: float) -> bool:
        """Return whether the job, and all that was written before, is in the append-only file.

        Raises ``ResponseError`` for a server that has none, or is older than Redis 7.2.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            # WAITAOF speaks of its own connection's writes; the file has all earlier ones before.
            pipeline.eval(_MARK_DURABLE.text, 1, self._keys.job(job_id).record)
            pipeline.execute_command("WAITAOF", 1, 0, round(timeout_s * 1000))
            is_there, (num_local, _) = await pipeline.execute()
        return bool(is_there and num_local)

    async def cancel(self, job_id: str) -> tuple[Outcome, JobState | None, str]:
        """Set the durable cancel flag; returns (OK, CLOSED or GONE; the state; the owner)."""
        reply = await _CANCEL.run(self._redis, [self._keys.job(job_id).record], [])
        state = JobState(reply[1].decode()) if reply[1] else None
        return Outcome(reply[0].decode()), state, reply[2].decode()

    async def requeue(self, job_id: str, owner: str, retrying: Retrying, *, lost: bool) -> Outcome:
        """Take a running job from ``owner``, who is fenced from now on, and let it wait again."""
        keys = self._keys.job(job_id)
        args: list[Argument] = [keys.live, owner, int(lost), encode_event(retrying)]
        reply = await _REQUEUE.run(self._redis, [keys.record, keys.log], args)
        return Outcome(reply[0].decode())

    async def record(self, job_id: str) -> JobRecord | None:
        """Return the job record, or None for an unknown or forgotten job."""
        fields = await self._redis.hgetall(self._keys.job(job_id).record)  # type: ignore[misc]
        return read_record(job_id, fields) if fields else None

    async def owner(self, job_id: str) -> str | None:
        """Return a job's tenant. Asked first, a foreign job takes as long as a missing one."""
        found = await self._redis.hget(self._keys.job(job_id).record, "tenant")  # type: ignore[misc]
        return found.decode() if found is not None else None

    async def position(self, job_id: str) -> tuple[int, int, int] | None:
        """Return (epoch, next, retention_ms) of a job, also where its spec cannot be read."""
        names = ["epoch", "next", "retention_ms"]
        fields = await self._redis.hmget(self._keys.job(job_id).record, names)  # type: ignore[misc]
        if None in fields:
            return None
        epoch, next_n, retention_ms = (int(field) for field in fields)
        return epoch, next_n, retention_ms

    async def deadline_ms(self, job_id: str) -> int | None:
        """Return when an unfinished job must be done, None for an ended or a missing one."""
        names = ["state", "deadline_ms"]
        state, deadline = await self._redis.hmget(self._keys.job(job_id).record, names)  # type: ignore[misc]
        return int(deadline) if state is not None and state.decode() in ACTIVE else None

    async def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return many job records in one round trip; None for a lost or an unreadable one."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self._keys.job(job_id).record)
            replies = await pipeline.execute()
        return [
            _record_if_readable(job_id, fields)
            for job_id, fields in zip(job_ids, replies, strict=True)
        ]

    async def log(
        self, job_id: str, start: int = 0, limit: int = sys.maxsize
    ) -> list[tuple[int, bytes]]:
        """Return up to ``limit`` events from event ``start`` as (n, payload), read page by page."""
        keys = self._keys.job(job_id)
        events: list[tuple[int, bytes]] = []
        while True:
            count = min(LOG_PAGE, limit - len(events))
            page = await self._page(keys, start, count)
            events += page
            if len(page) < count or len(events) == limit:
                return events
            start = page[-1][0] + 1

    async def _page(self, keys: JobKeys, start: int, count: int) -> list[tuple[int, bytes]]:
        entries = await self._redis.xrange(keys.log, min=f"0-{start + 1}", count=count)
        return [_numbered(entry_id, fields) for entry_id, fields in entries]

    async def top(self, job_ids: Iterable[str]) -> list[tuple[str, int] | None]:
        """Return (incarnation, log's next) of many jobs in one round trip, None for a lost one."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(self._keys.job(job_id).record, ["incarnation", "next"])
            replies = await pipeline.execute()
        return [(inc.decode(), int(n)) if inc and n else None for inc, n in replies]

    async def snapshot(self, job_id: str) -> Snapshot | None:
        """Return the record and the log up to the record's ``next``, or None.

        One round trip, but for logs of more than a page.
        """
        keys = self._keys.job(job_id)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(keys.record)
            pipeline.xrange(keys.log, count=LOG_PAGE)
            pipeline.time()
            fields, entries, (seconds, micros) = await pipeline.execute()
        if not fields:
            return None
        record = read_record(job_id, fields)
        page = [_numbered(entry_id, entry) for entry_id, entry in entries]
        if len(page) == LOG_PAGE:
            page += await self.log(job_id, page[-1][0] + 1)
        payloads = tuple(payload for _, payload in page)[: record.next]
        events = tuple(decode_event(payload) for payload in payloads)
        return Snapshot(record, payloads, events, int(seconds) * 1000 + int(micros) // 1000)


def _numbered(entry_id: bytes, fields: dict[bytes, bytes]) -> tuple[int, bytes]:
    return int(entry_id.partition(b"-")[2]) - 1, fields[b"event"]


def _record_if_readable(job_id: str, fields: dict[bytes, bytes]) -> JobRecord | None:
    """Return None where one damaged record must not hide the others."""
    try:
        return read_record(job_id, fields) if fields else None
    except msgspec.MsgspecError as error:
        _log.error("job_unreadable", job=job_id, error=str(error))
        return None
