"""A model's lanes: jobs wait in them, workers claim from them, the sweep moves what died."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from common.dead_letters import LETTERS_TTL_S, MAX_LETTERS, Letter, encode_letter
from common.errors import HeadraceError
from common.jobs import Priority
from common.keys import ORPHANS, Keys
from common.limits import Admission, Limits, Verdict
from common.scripts import Argument, Script

SWEEP_LIMIT = 100
STEAL_LIMIT = 16
"""How many other workers' lanes one look for late work sees, the longest overdue first."""

AGEING_S = 60.0
"""How much longer a job must have waited to go before one of the next higher priority."""

_ADMIT = Script("admit", shared=("clock", "tenants"))
_ENQUEUE = Script("enqueue", shared=("clock", "tenants"))
_CLAIM = Script("claim", shared=("clock", "tenants"))
_RELEASE = Script("release", shared=("clock", "tenants"))
_SETTLE = Script("settle", shared=("tenants",))
_ORPHAN = Script("orphan", shared=("clock",))
_RETIRE = Script("retire")


class LeaseLapsed(HeadraceError):
    """The worker was declared dead: it must drop its jobs and join under a new ID."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A lane entry that a worker holds until it releases it."""

    job_id: str
    lane: str
    entry: str


@dataclass(frozen=True, slots=True)
class Affinity:
    """Where a job would like to run: with this prompt ID's holder, after this long anywhere."""

    prompt_id: str
    patience_s: float


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """One lane: what waits in it and what is being worked on."""

    lane: str
    waiting: int
    pending: int


class Lanes:
    """The lanes of one model."""

    def __init__(self, redis: Redis, keys: Keys, model: str) -> None:
        self.model = model
        self._redis = redis
        self._keys = keys.model(model)

    async def admit(
        self, tenant: str, limits: Limits, max_queued: int, num_tokens: int
    ) -> Admission:
        """Ask whether a job of so many tokens may come, and take them from the tenant's minute.

        ``max_queued`` is how many jobs of the model may wait. Requests that ask at the same moment
        may pass the limits on waiting jobs by their number.
        """
        keys = [*self._keys.turns, self._keys.bucket(tenant)]
        args: list[Argument] = [tenant, max_queued]
        args += [limits.max_queued, limits.tokens_per_minute, num_tokens]
        reply = await _ADMIT.run(self._redis, keys, args)
        verdict, jobs_left, tokens_left, wait_ms = reply
        return Admission(
            Verdict(verdict.decode()), int(jobs_left), int(tokens_left), int(wait_ms) / 1000
        )

    async def enqueue(
        self,
        job_id: str,
        tenant: str,
        priority: Priority,
        deadline_ms: int,
        affinity: Affinity | None = None,
        limits: Limits | None = None,
    ) -> bool:
        """Put the job into its tenant's lane, or for a while into that of its prompt's holder.

        ``limits`` are the tenant's from now on; without them its old ones stay. False when the job
        is in a lane already.
        """
        keys = [
            *self._keys.turns,
            self._keys.lanes,
            self._keys.workers,
            self._keys.affinity,
            self._keys.draining,
        ]
        args: list[Argument] = [
            self._keys.bell,
            job_id,
            deadline_ms,
            priority,
            tenant,
            self._keys.lane(""),
            *((limits.weight, limits.max_running) if limits else ("", "")),
        ]
        if affinity is not None:
            keys.append(self._keys.prompt(tenant, affinity.prompt_id))
            args.append(round(affinity.patience_s * 1000))
        reply = await _ENQUEUE.run(self._redis, keys, args)
        return bool(reply == b"OK")

    async def claim(self, worker_id: str, count: int) -> list[Claim]:
        """Claim up to ``count`` (≥ 1) jobs; raises ``LeaseLapsed`` for a swept worker."""
        keys = [*self._keys.turns, self._keys.workers, self._keys.affinity, self._keys.draining]
        keys.append(self._keys.lane(ORPHANS))
        ageing_ms = round(AGEING_S * 1000)
        args: list[Argument] = [worker_id, count, self._keys.lane(""), STEAL_LIMIT, ageing_ms]
        reply = await _CLAIM.run(self._redis, keys, args)
        if reply[0] == b"LAPSED":
            raise LeaseLapsed(worker_id)
        return [
            Claim(job.decode(), lane.decode(), entry.decode()) for lane, entry, job in reply[1:]
        ]

    async def release(self, worker_id: str, claim: Claim, letter: Letter | None = None) -> bool:
        """Acknowledge and delete the entry; False when the worker no longer holds it.

        The letter is for a job that was given up: it goes to the dead letters.
        """
        keys = [*self._keys.turns, self._keys.lanes, self._keys.lane(claim.lane)]
        args: list[Argument] = [worker_id, claim.entry, claim.job_id, claim.lane, self._keys.bell]
        if letter is not None:
            keys.append(self._keys.dead)
            args += [encode_letter(letter), MAX_LETTERS, round(LETTERS_TTL_S * 1000)]
        return bool(await _RELEASE.run(self._redis, keys, args) == b"OK")

    async def retire(self, worker_id: str) -> None:
        """Let no job wait for this worker any more, and anybody take those that do."""
        keys = [self._keys.workers, self._keys.draining, self._keys.affinity]
        await _RETIRE.run(self._redis, keys, [self._keys.bell, worker_id])

    async def hand_back(self, worker_id: str, kept: Collection[str] = ()) -> list[str]:
        """Move this worker's own entries, but those of the kept jobs, to the orphans lane."""
        moved: list[str] = []
        while True:
            more, jobs = await self._orphan(worker_id, "self", kept)
            moved += jobs
            if not more:
                return moved

    async def sweep(self, worker_id: str) -> list[str]:
        """Move a dead worker's entries to the orphans lane, bounded; returns the jobs moved.

        The worker is forgotten once nothing of it is left. A worker that lives is left alone.
        """
        _, jobs = await self._orphan(worker_id, "dead", ())
        return jobs

    async def _orphan(
        self, worker_id: str, who: str, kept: Collection[str]
    ) -> tuple[bool, list[str]]:
        keys = [self._keys.workers, self._keys.lanes, self._keys.lane(ORPHANS)]
        keys.append(self._keys.draining)
        args: list[Argument] = [
            self._keys.bell,
            worker_id,
            SWEEP_LIMIT,
            who,
            self._keys.lane(""),
            *kept,
        ]
        reply = await _ORPHAN.run(self._redis, keys, args)
        return reply[0] == b"MORE", [job.decode() for job in reply[1:]]

    async def overdue(self, now_ms: int, limit: int = SWEEP_LIMIT) -> list[str]:
        """Return unfinished jobs whose deadline has passed."""
        found = await self._redis.zrangebyscore(self._keys.jobs, "-inf", now_ms, 0, limit)
        return [job.decode() for job in found]

    async def settle(self, job_id: str) -> None:
        """Take an ended job off the unfinished ones; its entry goes when it is claimed."""
        await _SETTLE.run(self._redis, self._keys.turns, [job_id, self._keys.bell])

    async def postpone(self, job_id: str, deadline_ms: int) -> None:
        """Let an unfinished job be overdue at another time."""
        await self._redis.zadd(self._keys.jobs, {job_id: deadline_ms}, xx=True)

    async def unfinished(self) -> int:
        """Return how many jobs of the model are queued or running."""
        return int(await self._redis.zcard(self._keys.jobs))

    async def depths(self) -> list[LaneDepth]:
        """Return every lane with what waits and what is held."""
        lanes = sorted(await self._redis.smembers(self._keys.lanes))  # type: ignore[misc]
        async with self._redis.pipeline(transaction=True) as pipeline:
            for lane in lanes:
                pipeline.xlen(self._keys.lane(lane.decode()))
                pipeline.xinfo_groups(self._keys.lane(lane.decode()))
            replies = await pipeline.execute(raise_on_error=False)
        return [
            _depth(lane.decode(), length, groups)
            for lane, length, groups in zip(lanes, replies[::2], replies[1::2], strict=True)
            if not isinstance(groups, ResponseError)  # released since its name was read
        ]


def _depth(lane: str, length: int, groups: list[dict[str, Any]]) -> LaneDepth:
    pending = sum(int(group["pending"]) for group in groups)
    return LaneDepth(lane, waiting=length - pending, pending=pending)
