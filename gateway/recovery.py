"""After Redis has come back: jobs whose place in a lane was lost get one again.

A power cut can take the last second of the append-only file, and with it the lane entry of a job
whose record is there; a failover can take it too. Once per run of the servers, one gateway looks
at all unfinished jobs; again and again while some of them run without a place, because nothing
would lead to those once their workers die.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from common.connections import UNAVAILABLE, every_server
from common.job_record import JobRecord
from common.job_store import JobStore
from common.jobs import ACTIVE, JobState
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Registry

_log = structlog.get_logger()

LEASE_MS = 60_000  # a gateway that dies in the middle, or leaves something, is followed by another
DONE_MS = 7 * 86_400_000
_SCANNED = 1_000  # keys per round trip; few of them are records
_PAGE = 50  # while the answers are parsed, no stream moves
_DONE = b"done"
_ACTIVE = frozenset(state.encode() for state in ACTIVE)


@dataclass(frozen=True, slots=True)
class Found:
    """Unfinished jobs without a place: ``num_mended`` got one, ``num_running`` have a worker."""

    num_mended: int = 0
    num_running: int = 0

    def __add__(self, other: "Found") -> "Found":
        return Found(self.num_mended + other.num_mended, self.num_running + other.num_running)


class Recovery:
    """Looks once at every run of the server, on one gateway of all."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._store = JobStore(redis, keys)
        self._registry = Registry(redis, keys)
        self._known_run = ""
        self._lease = ""  # the key that says that this gateway looks
        self._is_refused = False
        self._positions: dict[str, tuple[int, int]] = {}  # (epoch, next) of running jobs

    async def look(self) -> None:
        """Return at once unless the server is a new one and nobody has looked yet."""
        if self._is_refused:
            return
        try:
            await self._look()
        except UNAVAILABLE:
            raise
        except ResponseError as error:
            self._is_refused = _is_refusal(error)
            _log.warning("recovery_failed", error=str(error), again=not self._is_refused)

    async def _look(self) -> None:
        run = await self._run()
        if run == self._known_run:
            return
        self._lease = self._keys.recovery(run)
        if await self._redis.set(self._lease, b"", nx=True, px=LEASE_MS):
            found = await self.mend_all()
            if not found.num_running:
                self._positions.clear()
                await self._redis.set(self._lease, _DONE, px=DONE_MS)
            _log.info("recovered", mended=found.num_mended, left=found.num_running)
        if await self._redis.get(self._lease) == _DONE:
            self._known_run = run

    async def _run(self) -> str:
        """Return what names this run of all servers.

        A server that was started anew has another ``run_id``, and one that became the primary, may
        be for the second time, another ``master_replid``.
        """
        servers = await every_server(self._redis)
        infos = [await server.info("server", "replication") for server in servers]  # type: ignore[arg-type]
        runs = sorted(f"{info['run_id']} {info['master_replid']}" for info in infos)
        return hashlib.sha256(" ".join(runs).encode()).hexdigest()[:32]

    async def mend_all(self) -> Found:
        """Give every unfinished job that has no place in a lane one, unless a worker has it."""
        found, page = Found(), []
        for server in await every_server(self._redis):
            async for name in server.scan_iter(self._keys.any_record, count=_SCANNED):
                page.append(name.decode())
                if len(page) == _PAGE:
                    found += await self._mend(page)
                    page = []
        return found + await self._mend(page)

    async def _mend(self, names: Sequence[str]) -> Found:
        if self._lease:
            await self._redis.pexpire(self._lease, LEASE_MS)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(name, ["state", "model"])
            found = await pipeline.execute()
        active = [
            (self._keys.job_of_record(name), model.decode())
            for name, (state, model) in zip(names, found, strict=True)
            if state in _ACTIVE and model is not None
        ]
        lost = await self._placeless(active)
        records = await self._store.records(lost) if lost else []
        unfinished = [record for record in records if record and not record.is_ended]
        return sum([await self._place(record) for record in unfinished], Found())

    async def _placeless(self, jobs: Sequence[tuple[str, str]]) -> list[str]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id, model in jobs:
                pipeline.zscore(self._keys.model(model).jobs, job_id)
            places = await pipeline.execute()
        return [job_id for (job_id, _), place in zip(jobs, places, strict=True) if place is None]

    async def _place(self, record: JobRecord) -> Found:
        if await self._is_worked_on(record):
            return Found(num_running=1)
        lanes = Lanes(self._redis, self._keys, record.spec.model)
        _log.warning("job_had_no_place", job=record.id, state=record.state)
        priority = record.spec.priority
        is_new = await lanes.enqueue(record.id, record.tenant, priority, record.due_ms)
        return Found(num_mended=int(is_new))

    async def _is_worked_on(self, record: JobRecord) -> bool:
        """Tell whether a living worker runs the job, as far as one sees by now.

        Where a shard has lost a job's end, its worker lives and is done with it: nothing moves from
        one look to the next.
        """
        if record.state is not JobState.RUNNING:
            return False
        position = (record.epoch, record.next)
        stands_still = self._positions.get(record.id) == position
        self._positions[record.id] = position
        is_alive = await self._registry.is_alive(record.spec.model, record.owner)
        return is_alive and not stands_still


def _is_refusal(error: ResponseError) -> bool:
    """Tell whether asking again is in vain: a user without the right, or a managed server."""
    return isinstance(error, NoPermissionError) or "unknown command" in str(error)
