"""The job loop: claim what fits, start it, hand it to the engine; at the end, hand it over."""

import asyncio
from dataclasses import dataclass

import structlog

from common.connections import UNAVAILABLE
from common.events import Retrying
from common.lanes import Claim, LeaseLapsed
from common.names import worker_id
from worker.attempt import AttemptLog
from worker.backend import RETRY_S, Backend
from worker.bell import Bell
from worker.engine.protocol import Engine
from worker.lease import Lease
from worker.publisher import Publisher
from worker.starter import NotNow, Starter
from worker.together import together

_log = structlog.get_logger()

YIELD_S = 0.002
"""Per running job: several times what an idle worker needs from the bell to its claim."""
MAX_YIELD_S = 0.01


@dataclass(frozen=True, slots=True)
class Taken:
    """Jobs to begin now, with the holder of each entry. A claim that was full may leave more."""

    jobs: list[tuple[Claim, str]]
    may_be_more: bool


class Runner:
    """Claims and starts jobs for one worker; the publisher brings them to their end."""

    def __init__(
        self,
        backend: Backend,
        engine: Engine,
        lease: Lease,
        flush_s: float,
        max_losses: int,
    ) -> None:
        self.worker_id = worker_id()
        self.publisher = Publisher(backend, engine, lease, flush_s, self)
        self.draining = False
        self.work = asyncio.Event()  # the bell rang, or a slot became free
        self._backend = backend
        self._lease = lease
        self._starter = Starter(backend, engine, max_losses, self._may_risk)
        self._starting: dict[str, str] = {}  # job: holder; claimed, not yet started
        self._starts: set[asyncio.Task[None]] = set()  # what starts them
        self._is_leaving = False  # nothing is started any more: the jobs are handed over
        self._risky = ""  # the last job that was let start though it may cost this worker's life
        self._later: list[tuple[Claim, str]] = []  # such jobs, with their holder, that wait for it
        self._rang = False  # the bell rang since the last claim: other workers heard it too
        self._may_wait = True  # jobs may wait that the last claim left, and no bell tells of
        self._twice: set[str] = set()  # held under a second lane entry too
        self._has_doubts = False  # an entry may be held for a job that is not run
        self._not_claiming = asyncio.Event()
        self._not_claiming.set()
        self.may_hold_entries = False  # lane entries may carry this worker's ID

    @property
    def num_held(self) -> int:
        """How many jobs this worker holds."""
        return len(self._starting) + len(self.publisher.attempts)

    @property
    def _kept(self) -> set[str]:
        """The jobs whose lane entries this worker needs."""
        return self._starting.keys() | self.publisher.attempts.keys()

    async def run(self, capacity: int, poll_s: float) -> None:
        """Claim and start jobs until the worker drains."""
        self._not_claiming.clear()
        self.may_hold_entries = True
        async with asyncio.TaskGroup() as starts:
            while not self.draining:
                taken = await self.take(capacity - self.num_held)
                for claim, holder in taken.jobs:
                    self._begin_in(starts, claim, holder)
                if not taken.may_be_more:
                    await self._wait_for_work(poll_s)
                await self._yield_to_idle()
            self._not_claiming.set()

    async def take(self, room: int) -> Taken:
        """Claim up to so many jobs."""
        holder = self.worker_id  # the claims are its, also if the lease lapses meanwhile
        claims = await self._claim(holder, room)
        held = [(claim, holder) for claim in claims if self._hold(claim, holder)]
        return Taken(held + self._due(), may_be_more=0 < room <= len(claims))

    def ring(self) -> None:
        """Look for work now: there is some for one of the workers."""
        self._rang = True
        self.work.set()

    def slot_freed(self) -> None:
        """Look for work now, where some may wait for this room."""
        if self._may_wait or self._later or self._has_doubts or self._twice or self.draining:
            self.work.set()
        if not self.num_held:
            self._lease.renew_now()  # idle from now on

    def doubt_entries(self) -> None:
        """Give entries of jobs that are not run here back before the next claim."""
        self._has_doubts = True

    async def drain(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Stop claiming, let the running jobs finish in time, hand over the rest."""
        self.draining = True
        self.work.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._retire()
                await self._not_claiming.wait()
                while self.num_held and not hurry.is_set():
                    await self._give_back_later()
                    await self._wait_for_work(RETRY_S)
        except TimeoutError:
            _log.info("drain_timeout", held=self.num_held)
        await self.hand_over("drain", lost=False)

    async def rejoin(self, bell: Bell) -> None:
        """Whenever the sweep has removed this worker: drop its jobs, come back under a new ID."""
        while True:
            await self._lease.lapsed.wait()
            dropped = self.publisher.drop_all()
            _log.warning("lease_lapsed", worker=self.worker_id, dropped=len(dropped))
            self.worker_id = worker_id()
            await bell.rename(self.worker_id)
            self._lease.join_again()
            await self._lease.joined.wait()
            self.work.set()

    async def hand_over(self, reason: str, *, lost: bool) -> None:
        """Let every job of this worker wait for another one; ``lost`` counts against the job."""
        owners = await self._stop_starting()
        owners |= {log.job_id: log.grant.worker_id for log in self.publisher.drop_all()}
        requeue, retrying = self._backend.store.requeue, Retrying(reason)
        await together(
            requeue(job_id, owner, retrying, lost=lost) for job_id, owner in owners.items()
        )
        # Asked first: a claim that is still on its way may come after the entries went.
        is_claiming = not self._not_claiming.is_set()
        await self._backend.lanes.hand_back(self.worker_id)
        self.may_hold_entries = is_claiming

    async def _stop_starting(self) -> dict[str, str]:
        """Start nothing any more; returns the jobs that were to start, with their holders.

        Any of them may run under its holder: Redis applies a start whose reply nobody awaits.
        """
        self._is_leaving = True
        self._later.clear()
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        cut_off, self._starting = self._starting, {}
        return cut_off

    async def _give_back_later(self) -> None:
        """Let others have the jobs that wait here to be started."""
        waiting = [claim.job_id for claim, _ in self._later]
        self._later.clear()
        for job_id in waiting:
            del self._starting[job_id]
        try:
            if waiting:
                await self._backend.lanes.hand_back(self.worker_id, self._kept)
        except UNAVAILABLE as error:
            _log.warning("hand_back_failed", error=str(error))  # the hand-over has them too

    async def _retire(self) -> None:
        try:
            await self._backend.lanes.retire(self.worker_id)
        except UNAVAILABLE as error:
            _log.warning("retire_failed", error=str(error))  # jobs wait out their patience

    async def _yield_to_idle(self) -> None:
        """Let workers with less to do take new work first: all of them heard the bell."""
        if self._rang and self.num_held:
            await asyncio.sleep(min(self.num_held * YIELD_S, MAX_YIELD_S))
        self._rang = False

    async def _claim(self, holder: str, free: int) -> list[Claim]:
        self._may_wait = True
        if free < 1:
            return []
        try:
            await self._reconcile(holder)
            claims = await self._backend.lanes.claim(holder, free)
        except LeaseLapsed:
            return []  # not joined yet, or swept: the lease says which
        except UNAVAILABLE as error:
            # It may have been applied and its reply lost: the entries must not be stuck.
            self.doubt_entries()
            _log.warning("claim_failed", error=str(error))
            await asyncio.sleep(RETRY_S)
            return []
        self._may_wait = len(claims) >= free
        return claims

    async def _reconcile(self, holder: str) -> None:
        """Give back entries that this worker holds for jobs that it does not run."""
        kept = self._kept
        if self._twice <= kept and not self._has_doubts:
            return
        self._has_doubts = False
        await self._backend.lanes.hand_back(holder, kept)
        self._twice &= kept

    async def _wait_for_work(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.work.wait()
        except TimeoutError:
            return
        finally:
            self.work.clear()

    def _hold(self, claim: Claim, holder: str) -> bool:
        if self._is_leaving:
            return False  # its entry is handed back, or left to the sweep
        if claim.job_id in self._kept:
            _log.warning("claimed_twice", job=claim.job_id)
            self._twice.add(claim.job_id)  # this entry goes back when the first hold ends
            return False
        if not self.num_held:
            self._lease.renew_now()  # busy from now on
        self._starting[claim.job_id] = holder
        return True

    def _may_risk(self, job_id: str) -> bool:
        """Let one job at a time start that one more lost worker would end."""
        if self._risky != job_id and self._risky in self._kept:
            return False
        self._risky = job_id
        return True

    def _due(self) -> list[tuple[Claim, str]]:
        """Return jobs that waited for another one, and need not any more: one, or all lost ones."""
        lapsed = [late for late in self._later if late[1] != self.worker_id]
        self._later = [late for late in self._later if late[1] == self.worker_id]
        if self._later and self._risky not in self._kept:
            return [*lapsed, self._later.pop(0)]
        return lapsed

    def _begin_in(self, starts: asyncio.TaskGroup, claim: Claim, holder: str) -> None:
        start = starts.create_task(self._begin(claim, holder))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)

    async def _begin(self, claim: Claim, holder: str) -> None:
        try:
            log = await self._start(claim, holder)
        except NotNow:
            self._later.append((claim, holder))
            return
        del self._starting[claim.job_id]
        if log is None or holder != self.worker_id:
            self.work.set()
            return
        self.publisher.add(log)

    async def _start(self, claim: Claim, holder: str) -> AttemptLog | None:
        """Start the job, or end and release it where it must not start. Outlasts outages."""
        while holder == self.worker_id:
            try:
                if self._lease.is_current:
                    return await self._starter.start(claim, holder)
            except UNAVAILABLE as error:
                _log.warning("start_failed", job=claim.job_id, error=str(error))
            await asyncio.sleep(RETRY_S)
        return None
