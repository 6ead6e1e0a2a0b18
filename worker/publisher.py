"""Publishes what the engine says: at most one append per job and flush, all jobs in one pipeline.

The publisher owns the running attempts. It never drops an event: while Redis is away it waits, and
when Redis comes back with less, the answer ``GAP`` says from where to send again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

import structlog

from common.connections import UNAVAILABLE
from common.events import Ended
from common.job_store import LOST, Append, Outcome
from worker.attempt import AttemptLog
from worker.backend import RETRY_S, Backend
from worker.engine.protocol import UNRESUMABLE, Engine, Output, Refused
from worker.lease import Lease
from worker.metrics import Metrics
from worker.prompts import commit, has_to_commit
from worker.together import together

_log = structlog.get_logger()

PROBE_S = 1.0


class Holder(Protocol):
    """Who holds the lane entries of the attempts, and is told what becomes of them."""

    def slot_freed(self) -> None:
        """Take note that an attempt is over: there is room for another job."""

    def doubt_entries(self) -> None:
        """Take note that an entry may be held for a job that is not run."""


class Publisher:
    """The running attempts of one worker, from ``start`` to the released lane entry."""

    def __init__(
        self, backend: Backend, engine: Engine, lease: Lease, flush_s: float, holder: Holder
    ) -> None:
        self.attempts: dict[str, AttemptLog] = {}
        self.metrics = Metrics()
        self._store = backend.store
        self._lanes = backend.lanes
        self._prompts = backend.prompts
        self._engine = engine
        self._lease = lease
        self._flush_s = flush_s
        self._holder = holder
        self._dirty: set[str] = set()
        self._flushed_at = 0.0
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()  # a first token or an end: do not wait for the interval

    def sink(self, log: AttemptLog) -> Callable[[Output], None]:
        """Return where the engine delivers the outputs of this attempt."""

        def take(output: Output) -> None:
            if self.attempts.get(log.job_id) is not log:
                return  # fenced or handed over: somebody else writes this job now
            if isinstance(output, Refused) and output.type == UNRESUMABLE:
                self._restart(log, output.detail)
            else:
                log.take(output)
            self._dirty.add(log.job_id)
            self._wake.set()
            if log.end is not None or log.is_first_token:
                self._urgent.set()

        return take

    def add(self, log: AttemptLog) -> None:
        """Take over the attempt that ``start`` granted, and let the engine run it."""
        self.attempts[log.job_id] = log
        self._engine.submit(log.request, self.sink(log))

    def _restart(self, log: AttemptLog, reason: str) -> None:
        _log.warning("answer_reset", job=log.job_id, reason=reason)
        log.restart(reason)
        self._engine.submit(log.request, self.sink(log))

    def cancel(self, job_id: str) -> None:
        """End a running job early; an unknown one has just ended or moved."""
        if log := self.attempts.get(job_id):
            self._engine.cancel(log.request.id)

    def drop_all(self) -> list[AttemptLog]:
        """Stop writing every running job, because others own them now; returns them."""
        dropped = list(self.attempts.values())
        for log in dropped:
            self._drop(log)
        return dropped

    async def run(self) -> None:
        """Flush for ever. The only place that appends to logs."""
        while True:
            await self._wait_for_work()
            if not self._lease.is_current:
                await asyncio.sleep(RETRY_S)  # silent until the lease is renewed or lapsed
                continue
            self._urgent.clear()
            self._flushed_at = time.monotonic()
            try:
                await self.flush(self._due())
            except UNAVAILABLE as error:
                _log.warning("append_failed", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def flush(self, logs: Iterable[AttemptLog]) -> None:
        """Append what these attempts have, with the ends of those that are done."""
        batch = [(log, _append(log)) for log in logs]
        if not batch:
            return
        answers = await self._store.append([append for _, append in batch])
        rest = [
            self._settle(log, append, outcome, next_n)
            for (log, append), (outcome, next_n) in zip(batch, answers, strict=True)
        ]
        await together(step() for step in rest if step is not None)

    async def _wait_for_work(self) -> None:
        """Return when something is to be sent: in the rhythm of the interval, or at once.

        Tokens wait for those of the next step, if they come within the interval: what was handed
        out just now is sent while the model computes, and does not take the interpreter's lock
        from it between two steps.
        """
        if not self._dirty:
            self._wake.clear()
            try:
                async with asyncio.timeout(PROBE_S):
                    await self._wake.wait()
            except TimeoutError:
                return
        try:
            async with asyncio.timeout(self._flush_s):
                while not self._urgent.is_set() and not self._is_due:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._flushed_at >= self._flush_s

    def _due(self) -> list[AttemptLog]:
        """Return the attempts with news, and the silent ones, to ask whether they still may run."""
        silent = time.monotonic() - PROBE_S
        return [
            log
            for log in self.attempts.values()
            if log.job_id in self._dirty or log.appended_at < silent
        ]

    def _settle(
        self, log: AttemptLog, append: Append, outcome: Outcome, next_n: int
    ) -> Callable[[], Awaitable[None]] | None:
        """Take note of what Redis says; returns what is still to be done, if anything."""
        if self.attempts.get(log.job_id) is not log:
            return None
        if outcome in LOST or outcome is Outcome.STALE:
            return partial(self._lose, log, outcome)
        if append.end is not None and outcome is Outcome.OK:
            return partial(self._close, log, append.end)
        log.confirm(next_n)
        if log.is_sent and log.end is None:
            self._dirty.discard(log.job_id)
        else:
            self._dirty.add(log.job_id)
        if outcome in (Outcome.CANCEL, Outcome.EXPIRED):
            log.expire |= outcome is Outcome.EXPIRED
            self._engine.cancel(log.request.id)
        return partial(self._commit, log) if log.is_sent and has_to_commit(log) else None

    async def _lose(self, log: AttemptLog, outcome: Outcome) -> None:
        """Stop an attempt whose job has its end already, is gone, or belongs to another one."""
        _log.info("job_lost", job=log.job_id, outcome=outcome)
        if outcome in (Outcome.CLOSED, Outcome.GONE):
            await self._lanes.release(log.grant.worker_id, log.grant.claim)
        else:
            self._holder.doubt_entries()
        self._drop(log)

    async def _commit(self, log: AttemptLog) -> None:
        """Store the sequence; the end tells its version, and so has to wait for it."""
        await commit(self._prompts, log, self._engine)
        self._urgent.set()

    async def _close(self, log: AttemptLog, end: Ended) -> None:
        """Give the lane entry back: the job has its end."""
        self.metrics.observe(end)
        _log.info("job_ended", job=log.job_id, end=end.kind)
        await self._lanes.release(log.grant.worker_id, log.grant.claim)
        self._forget(log)

    def _drop(self, log: AttemptLog) -> None:
        self._engine.cancel(log.request.id)
        self._forget(log)

    def _forget(self, log: AttemptLog) -> None:
        if self.attempts.get(log.job_id) is log:
            del self.attempts[log.job_id]
        self._dirty.discard(log.job_id)
        self._holder.slot_freed()


def _append(log: AttemptLog) -> Append:
    """Return what Redis lacks of an attempt; what is to be committed first keeps its end."""
    n, payloads = log.confirmed, log.unsent()
    if log.end is None or has_to_commit(log):
        return Append(log.job_id, log.grant.epoch, n, payloads)
    retention_ms = log.grant.snapshot.record.retention_ms
    return Append(log.job_id, log.grant.epoch, n, payloads, log.end, retention_ms)
