"""No job is ever lost: random lives of workers against a model of who holds what."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from common import lanes as lanes_module
from common.connections import command_client
from common.jobs import Priority
from common.keys import GROUP, ORPHANS, Keys
from common.lanes import Affinity, Claim, Lanes, LeaseLapsed
from common.limits import Limits
from common.prompts import Commit, PromptIndex
from tests.support.jobs import MODEL
from tests.support.leaks import clear, find_keys

FAR_MS = 2**42
LAPSED_MS = 1
SWEEP_LIMIT = 3
HOUR_S = 3600.0
LONG_MS = 3_600_000
TENANT = "a"
BOUNDED, MAX_RUNNING = "b", 2
WAITING = ""

T = TypeVar("T")


@dataclass
class Worker:
    """A worker as it sees itself: also a dead one remembers what it claimed."""

    id: str
    alive: bool = True
    swept: bool = False
    claims: list[Claim] = field(default_factory=list)


class LanesMachine(RuleBasedStateMachine):
    """Workers join, lapse, claim, release, sweep and hand back; jobs stay in one place each.

    ``holder`` is the model: every unfinished job with the worker that holds it, or ``WAITING``.
    ``waits_for`` are the waiting jobs that one worker should take, with that worker, in order;
    ``late`` are the workers whose next such job anybody may take by now.
    """

    url = ""
    prefix = ""
    generation = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).generation += 1
        self.keys = Keys(f"{self.prefix}-{self.generation}")
        self.runner = asyncio.Runner()
        self.redis: Redis = command_client(self.url)
        self.lanes = Lanes(self.redis, self.keys, MODEL)
        self.holder: dict[str, str] = {}
        self.tenants: dict[str, str] = {}  # of every job that ever was
        self.slots: set[str] = set()  # jobs that were claimed, and have not been released
        self.held_by: dict[str, Claim] = {}
        self.prompts = PromptIndex(self.redis, self.keys, MODEL)
        self.waits_for: dict[str, str] = {}
        self.late: set[str] = set()
        self.workers: list[Worker] = []
        self.num_jobs = 0
        self.limit = mock.patch.object(lanes_module, "SWEEP_LIMIT", SWEEP_LIMIT)
        self.limit.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the machine's loop."""
        return self.runner.run(work)

    async def set_lease(self, worker: Worker, deadline_ms: int) -> None:
        """Write the lease as the worker's own thread does."""
        await self.redis.zadd(self.keys.model(MODEL).workers, {worker.id: deadline_ms})

    async def make_late(self, owner: str) -> bool:
        """Let anybody take the next job that waits for this worker; False where it was so."""
        affinity = self.keys.model(MODEL).affinity
        return bool(await self.redis.zadd(affinity, {owner: 1}, xx=True, ch=True))

    def pick(self, index: int) -> Worker:
        """Return one of the workers."""
        return self.workers[index % len(self.workers)]

    def jobs_of(self, holder: str) -> list[str]:
        """Return the jobs that are held by this worker, or that wait."""
        return [job for job, held_by in self.holder.items() if held_by == holder]

    @initialize()
    def begin(self) -> None:
        """There is a worker from the first step on."""
        self.join()

    @rule()
    @precondition(lambda self: len(self.workers) < 6)
    def join(self) -> None:
        """A new worker takes a lease."""
        worker = Worker(f"w{len(self.workers)}")
        self.workers.append(worker)
        self.run(self.set_lease(worker, FAR_MS))
        commit = Commit(f"by-{worker.id}", 1, worker.id, (1,), LONG_MS)
        self.run(self.prompts.commit(TENANT, worker.id, commit))

    @rule(count=st.integers(1, 6), tenant=st.sampled_from("ab"), priority=st.sampled_from(Priority))
    def enqueue(self, count: int, tenant: str, priority: Priority) -> None:
        """Some new jobs arrive."""
        for _ in range(count):
            job = f"j{self.num_jobs}"
            self.num_jobs += 1
            limits = Limits(max_running=MAX_RUNNING if tenant == BOUNDED else 0)
            assert self.run(self.lanes.enqueue(job, tenant, priority, FAR_MS, limits=limits))
            self.holder[job] = WAITING
            self.tenants[job] = tenant

    @rule(count=st.integers(1, 4), index=st.integers(0, 9))
    def enqueue_prompt(self, count: int, index: int) -> None:
        """Some jobs arrive whose prompt one worker holds; a dead one is nobody to wait for."""
        owner = self.pick(index)
        for _ in range(count):
            job = f"j{self.num_jobs}"
            self.num_jobs += 1
            affinity = Affinity(owner.id, HOUR_S)
            assert self.run(self.lanes.enqueue(job, TENANT, Priority.LOW, FAR_MS, affinity))
            self.holder[job] = WAITING
            self.tenants[job] = TENANT
            if owner.alive:
                self.waits_for[job] = owner.id

    @rule(index=st.integers(0, 9))
    def pass_patience(self, index: int) -> None:
        """The next job that waits for a worker has waited long enough."""
        owner = self.pick(index).id
        changed = self.run(self.make_late(owner))
        if owner in self.waits_for.values():
            assert changed or owner in self.late
            self.late.add(owner)
        else:
            assert not changed

    def visible(self, worker: Worker) -> int:
        """Return how many waiting jobs this worker may take."""
        living = {other.id for other in self.workers if other.alive and other is not worker}
        kept = [owner for owner in self.waits_for.values() if owner in living]
        num_late = sum(owner in self.late for owner in set(kept))
        waiting = self.jobs_of(WAITING)
        return len(waiting) - len(kept) + num_late - self.num_too_many(waiting)

    def num_too_many(self, waiting: list[str]) -> int:
        """Return how many waiting jobs of the bounded tenant would be more than it may run."""
        num_free = MAX_RUNNING - sum(self.tenants[job] == BOUNDED for job in self.slots)
        fresh = [job for job in waiting if self.tenants[job] == BOUNDED and job not in self.slots]
        return max(0, len(fresh) - num_free)

    @precondition(lambda self: self.holder)
    @rule(index=st.integers(0, 99), tenant=st.sampled_from("ab"))
    def enqueue_again(self, index: int, tenant: str) -> None:
        """A client repeats its request for an unfinished job."""
        job = list(self.holder)[index % len(self.holder)]
        assert not self.run(self.lanes.enqueue(job, tenant, Priority.HIGH, FAR_MS))

    @rule(index=st.integers(0, 9))
    def lapse(self, index: int) -> None:
        """A worker is silent past its lease."""
        worker = self.pick(index)
        worker.alive = False
        if not worker.swept:
            self.run(self.set_lease(worker, LAPSED_MS))

    @rule(index=st.integers(0, 9), count=st.integers(1, 8))
    def claim(self, index: int, count: int) -> None:
        """A worker asks for jobs; also one that is dead and does not know it."""
        worker = self.pick(index)
        if worker.swept:
            with pytest.raises(LeaseLapsed):
                self.run(self.lanes.claim(worker.id, count))
            return
        visible = self.visible(worker)
        claims = self.run(self.lanes.claim(worker.id, count))
        assert len(claims) == min(count, visible)
        for claim in claims:
            assert self.holder[claim.job_id] == WAITING
            if owner := self.waits_for.pop(claim.job_id, None):
                assert claim.lane == f"worker:{owner}"
                self.late.discard(owner)
            self.holder[claim.job_id] = worker.id
            self.held_by[claim.job_id] = claim
            self.slots.add(claim.job_id)
        worker.claims += claims

    @rule(index=st.integers(0, 9), which=st.integers(0, 99))
    def release(self, index: int, which: int) -> None:
        """A worker releases a claim, perhaps one that it lost long ago."""
        worker = self.pick(index)
        if not worker.claims:
            return
        claim = worker.claims[which % len(worker.claims)]
        holds = self.holder.get(claim.job_id) == worker.id and self.held_by[claim.job_id] == claim
        assert self.run(self.lanes.release(worker.id, claim)) == holds
        if holds:
            del self.holder[claim.job_id]
            self.slots.discard(claim.job_id)

    @rule(index=st.integers(0, 9))
    def sweep(self, index: int) -> None:
        """The sweep looks at a worker, dead or not."""
        self.swept(self.pick(index))

    def swept(self, worker: Worker) -> None:
        """Sweep the worker and do the same in the model."""
        held = self.jobs_of(worker.id)
        moved = self.run(self.lanes.sweep(worker.id))
        assert len(set(moved)) == len(moved) == (0 if worker.alive else min(SWEEP_LIMIT, len(held)))
        assert set(moved) <= set(held)
        self.wait_again(moved)
        worker.swept = not worker.alive and len(held) <= SWEEP_LIMIT

    @rule(index=st.integers(0, 9), keep=st.sets(st.integers(0, 9)))
    def hand_back(self, index: int, keep: set[int]) -> None:
        """A worker drains: it gives back what it does not run."""
        worker = self.pick(index)
        held = self.jobs_of(worker.id)
        kept = {job for i, job in enumerate(held) if i in keep}
        moved = self.run(self.lanes.hand_back(worker.id, kept))
        assert sorted(moved) == sorted(set(held) - kept)
        self.wait_again(moved)

    def wait_again(self, jobs: list[str]) -> None:
        """Note that these jobs have no holder."""
        for job in jobs:
            self.holder[job] = WAITING
            del self.held_by[job]

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        """Redis agrees with the model on every job, every ring and every worker."""
        self.run(self.compare())

    async def compare(self) -> None:
        """Compare all that Redis holds with the model."""
        keys = self.keys.model(MODEL)
        places: list[tuple[str, str]] = []
        for lane in await self.redis.smembers(keys.lanes):  # type: ignore[misc]
            found = await self.read(lane.decode())
            places += found
            if lane.decode() != ORPHANS and any(holder == WAITING for _, holder in found):
                kind, _, whose = lane.decode().partition(":")
                ring = keys.affinity if kind == "worker" else keys.ring(Priority(kind))
                has_turn = await self.redis.zscore(ring, whose) is not None
                is_full = await self.redis.sismember(f"{keys.prefix}:full:{kind}", whose)  # type: ignore[misc]
                assert has_turn or is_full  # both until its turn comes, which finds it full
        assert sorted(places) == sorted(self.holder.items())
        owners = await self.redis.zrange(keys.affinity, 0, -1)
        assert {owner.decode() for owner in owners} == set(self.waits_for.values())
        jobs = await self.redis.zrange(keys.jobs, 0, -1)
        assert {job.decode() for job in jobs} == set(self.holder)
        for tenant in (TENANT, BOUNDED):
            names = [f"jobs:{tenant}", f"slots:{tenant}"]
            counted = await self.redis.hmget(keys.tenants, names)  # type: ignore[misc]
            own = [job for job in self.holder if self.tenants[job] == tenant]
            assert int(counted[0] or 0) == len(own)
            assert int(counted[1] or 0) >= len(self.slots.intersection(own))
        workers = await self.redis.zrange(keys.workers, 0, -1)
        assert {w.decode() for w in workers} == {w.id for w in self.workers if not w.swept}

    async def read(self, lane: str) -> list[tuple[str, str]]:
        """Return the jobs of a lane, each with its holder; an empty lane has no business there."""
        name = self.keys.model(MODEL).lane(lane)
        entries = await self.redis.xrange(name)
        pending = await self.redis.xpending_range(name, GROUP, "-", "+", 1000)
        assert entries, f"{lane} is empty and exists"
        holders = {entry["message_id"]: entry["consumer"].decode() for entry in pending}
        assert set(holders) <= {entry for entry, _ in entries}
        return [(fields[b"job"].decode(), holders.get(entry, WAITING)) for entry, fields in entries]

    def teardown(self) -> None:
        """At the end every job can be had, and nothing is left of the lanes."""
        try:
            if self.workers:
                self.drain()
        finally:
            self.limit.stop()
            self.run(clear(self.redis, self.keys.prefix))
            self.run(self.redis.aclose())
            self.runner.close()

    def drain(self) -> None:
        """Let all workers die, and a last one finish their jobs."""
        for index, worker in enumerate(self.workers):
            self.lapse(index)
            while not worker.swept:
                self.swept(worker)
        self.join()
        last = self.workers[-1]
        done: list[str] = []
        while claims := self.run(self.lanes.claim(last.id, self.num_jobs + 1)):
            for claim in claims:
                assert self.run(self.lanes.release(last.id, claim))
            done += [claim.job_id for claim in claims]
        assert sorted(done) == sorted(self.holder)
        self.swept_clean(last)

    def swept_clean(self, last: Worker) -> None:
        """Only the last worker's lease is left in Redis."""
        left = self.run(find_keys(self.redis, self.keys.prefix))
        keys = self.keys.model(MODEL)
        may_stay = {keys.prompt(TENANT, worker.id).encode() for worker in self.workers}
        may_stay |= {f"{keys.prefix}:clock:{priority}".encode() for priority in Priority}
        assert set(left) - may_stay == {keys.workers.encode()}
        assert self.run(self.lanes.claim(last.id, 1)) == []


@pytest.mark.fault(39)
def test_no_job_is_ever_lost(redis_url: str, keys: Keys) -> None:
    """Whatever workers do and whenever they die, each unfinished job is in exactly one place."""

    class Machine(LanesMachine):
        url = redis_url
        prefix = keys.prefix

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )
