"""From a claimed lane entry to a started attempt; or to the end of a job that must not start."""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from common.dead_letters import UNREADABLE, Letter, letter_of
from common.emitted import emitted_choices
from common.endings import choose_end, end_idle, end_unreadable, num_losses
from common.errors import HeadraceError
from common.events import ErrorInfo, Started
from common.job_record import JobRecord, Snapshot
from common.job_store import Outcome
from common.lanes import Claim
from common.token_ids import unpack_ids
from worker.attempt import AttemptLog, Grant
from worker.backend import Backend
from worker.engine.protocol import Engine, Request
from worker.prompts import Unbuildable, end_unbuildable, find_base

_log = structlog.get_logger()

PROBE_S = 0.25
"""How long a start waits for the engine to say what it holds: that is news, not a condition."""


class NotNow(HeadraceError):
    """The job must wait until another one that may cost this worker its life has ended."""


class Starter:
    """Starts jobs for one worker.

    ``may_risk`` says whether a job may start now that one more lost worker would end. Two of them
    on one worker would share its fate, and the one that kills it would take the other one along.
    """

    def __init__(
        self, backend: Backend, engine: Engine, max_losses: int, may_risk: Callable[[str], bool]
    ) -> None:
        self._backend = backend
        self._engine = engine
        self._max_losses = max_losses
        self._may_risk = may_risk

    async def start(self, claim: Claim, holder: str) -> AttemptLog | None:
        """Start the job for ``holder``, or end and release it where it must not start.

        Raises ``NotNow`` for one that must wait.
        """
        try:
            return await self._start_or_end(claim, holder)
        except msgspec.MsgspecError as error:
            _log.error("record_unreadable", job=claim.job_id, error=str(error))
            await end_unreadable(self._backend.store, claim.job_id, error)
            letter = await self._unreadable(claim.job_id, error)
            await self._backend.lanes.release(holder, claim, letter)
            return None

    async def _unreadable(self, job_id: str, error: Exception) -> Letter:
        tenant = await self._backend.store.owner(job_id) or ""
        return Letter(job_id, tenant, ErrorInfo(UNREADABLE, str(error)))

    async def _start_or_end(self, claim: Claim, holder: str) -> AttemptLog | None:
        while True:
            snapshot = await self._backend.store.snapshot(claim.job_id)
            if snapshot is None or snapshot.record.is_ended:
                letter = letter_of(snapshot) if snapshot else None
                await self._backend.lanes.release(holder, claim, letter)
                return None
            if await self._end_instead(snapshot, holder):
                continue
            if self._is_last_chance(snapshot, holder) and not self._may_risk(claim.job_id):
                raise NotNow
            if log := await self._try(claim, snapshot, holder):
                return log

    async def _try(self, claim: Claim, snapshot: Snapshot, holder: str) -> AttemptLog | None:
        """Start the job as it was read; None when it must be read again."""
        store, record = self._backend.store, snapshot.record
        try:
            base = await find_base(self._backend.prompts, record)
        except Unbuildable as refusal:
            await end_idle(store, record.id, end_unbuildable(record, refusal.error))
            return None
        ids = unpack_ids(base)
        started = Started(holder, record.attempts + 1, await self._probe(snapshot, ids))
        outcome, epoch, queue_s = await store.start(record, holder, started, base)
        if outcome is not Outcome.OK:
            return None
        await self._limit_run(record)
        _log.info("job_started", job=record.id, attempt=started.attempt, cache=started.cache)
        return AttemptLog(
            Grant(claim, snapshot, epoch, started.attempt, queue_s, holder, ids), started
        )

    async def _limit_run(self, record: JobRecord) -> None:
        """Let the sweep look at the job when its time to run is over, whoever runs it then."""
        if record.spec.run_deadline_s is not None:
            deadline_ms = await self._backend.store.deadline_ms(record.id)
            if deadline_ms is not None:
                await self._backend.lanes.postpone(record.id, deadline_ms)

    def _is_last_chance(self, snapshot: Snapshot, holder: str) -> bool:
        losses = num_losses(snapshot.record, holder)
        return 0 < losses == self._max_losses - 1

    async def _probe(self, snapshot: Snapshot, base: tuple[int, ...]) -> str:
        """Return what the engine holds of the prompt, "" where it does not say so in time."""
        record = snapshot.record
        emitted = emitted_choices(snapshot.events, record.spec.n)
        request = Request(f"{record.id}:probe", record.spec, emitted, record.tenant, base)
        try:
            async with asyncio.timeout(PROBE_S):
                return await self._engine.probe(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job can start
            _log.warning("probe_failed", job=record.id, error=repr(error))
            return ""

    async def _end_instead(self, snapshot: Snapshot, holder: str) -> bool:
        now_ms = snapshot.read_ms
        if choose_end(snapshot, now_ms, self._max_losses, holder) is None:
            return False
        await end_idle(
            self._backend.store,
            snapshot.record.id,
            lambda latest: choose_end(latest, now_ms, self._max_losses, holder),
        )
        return True
