"""After Redis has come back: jobs whose place in a lane was lost get one again.

A power cut can take the last second of the append-only file, and with it the lane entry of a job
whose record is there; a failover can take it too. Once per run of the servers, one gateway looks
at all unfinished jobs.
"""

import hashlib
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from common.connections import UNAVAILABLE, every_server
from common.job_store import JobRecord, JobStore
from common.jobs import ACTIVE, JobState
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Registry

_log = structlog.get_logger()

LEASE_MS = 60_000  # a gateway that dies in the middle is followed by another one
DONE_MS = 7 * 86_400_000
_SCANNED = 1_000  # keys per round trip; few of them are records
_PAGE = 50  # while the answers are parsed, no stream moves
_DONE = b"done"
_ACTIVE = frozenset(state.encode() for state in ACTIVE)


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

    async def look(self) -> None:
        """Return at once unless the server has been started anew and nobody has looked yet."""
        if self._is_refused:
            return
        try:
            await self._look()
        except UNAVAILABLE:
            raise
        except ResponseError as error:
            self._is_refused = True  # a user without `info` or `scan`, or a managed server
            _log.warning("recovery_refused", error=str(error))

    async def _look(self) -> None:
        run = await self._run()
        if run == self._known_run:
            return
        self._lease = self._keys.recovery(run)
        if await self._redis.set(self._lease, b"", nx=True, px=LEASE_MS):
            num_mended = await self.mend_all()
            await self._redis.set(self._lease, _DONE, px=DONE_MS)
            _log.info("recovered", mended=num_mended)
        if await self._redis.get(self._lease) == _DONE:
            self._known_run = run

    async def _run(self) -> str:
        """Return what names this run of all servers: one that was started anew changes it."""
        servers = await every_server(self._redis)
        infos = [await server.info("server") for server in servers]
        runs = sorted(str(info["run_id"]) for info in infos)
        return hashlib.sha256(" ".join(runs).encode()).hexdigest()[:32]

    async def mend_all(self) -> int:
        """Give every unfinished job that has no place in a lane one; return how many there were."""
        num_mended, page = 0, []
        for server in await every_server(self._redis):
            async for name in server.scan_iter(self._keys.any_record, count=_SCANNED):
                page.append(name.decode())
                if len(page) == _PAGE:
                    num_mended += await self._mend(page)
                    page = []
        return num_mended + await self._mend(page)

    async def _mend(self, names: Sequence[str]) -> int:
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
        return sum([await self._enqueue(record) for record in records if record])

    async def _placeless(self, jobs: Sequence[tuple[str, str]]) -> list[str]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id, model in jobs:
                pipeline.zscore(self._keys.model(model).jobs, job_id)
            places = await pipeline.execute()
        return [job_id for (job_id, _), place in zip(jobs, places, strict=True) if place is None]

    async def _enqueue(self, record: JobRecord) -> bool:
        if await self._is_worked_on(record):
            return False
        lanes = Lanes(self._redis, self._keys, record.spec.model)
        _log.warning("job_had_no_place", job=record.id, state=record.state)
        priority = record.spec.priority
        return await lanes.enqueue(record.id, record.tenant, priority, record.due_ms)

    async def _is_worked_on(self, record: JobRecord) -> bool:
        is_running = record.state is JobState.RUNNING
        return is_running and await self._registry.is_alive(record.spec.model, record.owner)
