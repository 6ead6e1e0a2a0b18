"""The processes of the simulation: the real code of workers and gateways, one action at a time."""

import random
import zlib
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import Redis

from common.api_keys import Scope
from common.connections import UNAVAILABLE
from common.job_store import JobStore
from common.jobs import FinishReason
from common.keys import Keys
from common.limits import Limits
from common.registry import Heartbeat, Registry
from common.settings import Settings
from gateway.cancellation import cancel_job
from gateway.identity import Caller
from gateway.metrics import Metrics
from gateway.model_choice import ModelChoice
from gateway.schemas import JobRequest
from gateway.secret import SharedSecret
from gateway.services import Services
from gateway.submission import accept
from tests.support.jobs import MODEL, make_worker
from worker.backend import Backend
from worker.engine.protocol import (
    Delta,
    Engine,
    EngineStats,
    Finished,
    Output,
    Prefilled,
    Request,
)
from worker.lease import Lease
from worker.runner import Runner
from worker.sweeper import Sweeper

LIMITS = {"a": Limits(weight=2), "b": Limits(max_running=2)}
MAX_LOSSES = 4
CAPACITY = 4


def token(job_id: str, index: int) -> int:
    """Return the token that every engine makes at this place of a job's answer."""
    return zlib.crc32(f"{job_id}:{index}".encode()) % 50_000


def text_of(job_id: str, length: int) -> str:
    """Return the answer's text up to so many tokens."""
    return "".join(f"{token(job_id, index)} " for index in range(length))


class ScriptedEngine:
    """Makes the next token of a request when it is told to."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Request, Callable[[Output], None], int]] = {}

    @property
    def running(self) -> list[str]:
        """The requests that have not ended."""
        return list(self._running)

    async def probe(self, _request: Request) -> str:
        """Hold nothing."""
        return "miss"

    def submit(self, request: Request, sink: Callable[[Output], None]) -> None:
        """Go on after what was emitted."""
        self._running[request.id] = request, sink, len(request.emitted[0].ids)
        sink(Prefilled(3, 0, 0.0))

    def cancel(self, request_id: str) -> None:
        """End a request."""
        found = self._running.pop(request_id, None)
        if found is not None:
            found[1](Finished(FinishReason.CANCELLED))

    def step(self, request_id: str) -> None:
        """Make one token, or the end."""
        request, sink, length = self._running[request_id]
        if length >= request.spec.max_tokens:
            del self._running[request_id]
            sink(Finished(FinishReason.LENGTH))
            return
        made = token(request_id.partition(":")[0], length)
        self._running[request_id] = request, sink, length + 1
        sink(Delta((made,), f"{made} "))

    def stats(self) -> EngineStats:
        """Say nothing."""
        return EngineStats()


class EndlessLease:
    """The lease as a worker that was frozen sees it: still there. Only Redis knows better."""

    is_current = True

    def renew_now(self) -> None:
        """Do nothing: the simulation beats."""


class SimulatedWorker:
    """A worker's real parts, and what its loops would do with them."""

    def __init__(self, name: str, redis: Redis, keys: Keys, heartbeat: Heartbeat) -> None:
        self._name, self._num_names = name, 0
        self._heartbeat = heartbeat
        self.engine = ScriptedEngine()
        engine, lease = cast("Engine", self.engine), cast("Lease", EndlessLease())
        self._backend = Backend.on(redis, keys, MODEL)
        self._runner = Runner(self._backend, engine, lease, 0, MAX_LOSSES)
        self._publisher = self._runner.publisher
        self._join()

    @property
    def id(self) -> str:
        """The worker's current ID."""
        return self._runner.worker_id

    @property
    def num_attempts(self) -> int:
        """How many jobs it believes to run."""
        return len(self._publisher.attempts)

    def beat(self) -> None:
        """Renew the lease; one that was swept drops its jobs and comes back under a new ID."""
        if not self._heartbeat.renew(make_worker(self.id)):
            self._publisher.drop_all()
            self._join()

    async def claim(self) -> None:
        """Claim what fits, and start it."""
        for claim, holder in (await self._runner.take(CAPACITY - self._runner.num_held)).jobs:
            await self._runner._begin(claim, holder)

    def generate(self, rng: random.Random, num_steps: int) -> None:
        """Make tokens of random requests."""
        for _ in range(num_steps):
            if self.engine.running:
                self.engine.step(rng.choice(self.engine.running))

    async def flush(self, rng: random.Random | None = None) -> None:
        """Publish what some of the attempts have, or all of them."""
        logs = list(self._publisher.attempts.values())
        if rng is not None:
            logs = [log for log in logs if rng.random() < 0.7]
        try:
            await self._publisher.flush(logs)
        except UNAVAILABLE:
            return  # the same again, next time

    async def sweep(self) -> None:
        """Sweep once."""
        try:
            await Sweeper(self._backend, lease_s=0).sweep()
        except UNAVAILABLE:
            return

    async def drain(self) -> None:
        """Hand everything over and leave, as on SIGTERM."""
        self._runner.draining = True
        await self._runner.hand_over("drain", lost=False)
        self._heartbeat.leave(self.id, MODEL)

    def _join(self) -> None:
        self._num_names += 1
        self._runner.worker_id = f"{self._name}-{self._num_names}"
        self._heartbeat.join(make_worker(self.id))


class SimulatedGateway:
    """The real doors of a gateway, without HTTP before them."""

    def __init__(self, redis: Redis, keys: Keys, settings: Settings) -> None:
        nothing: Any = None  # what these doors do not use
        registry = Registry(redis, keys)
        self._services = Services(
            settings=settings,
            keys=keys,
            redis=redis,
            store=JobStore(redis, keys),
            registry=registry,
            models=ModelChoice(registry, settings.default_model),
            relay=nothing,
            streams=nothing,
            metrics=Metrics(),
            secret=SharedSecret(redis, keys),
            links=nothing,
            doorkeeper=nothing,
        )

    async def submit(self, tenant: str, key: str, max_tokens: int) -> str:
        """Accept a job; return its ID."""
        request = JobRequest(prompt="Once", max_tokens=max_tokens)
        caller = Caller(tenant, frozenset(Scope), limits=LIMITS[tenant])
        return (await accept(self._services, caller, request, key)).job.id

    async def cancel(self, tenant: str, job_id: str) -> None:
        """Cancel a job."""
        await cancel_job(self._services, tenant, job_id)
