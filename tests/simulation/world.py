"""A fleet that lives through random faults, and what must be true when they are over."""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.connections import UNAVAILABLE, every_server
from common.dead_letters import DeadLetters
from common.events import Cancelled, Completed, Failed
from common.job_store import JobStore
from common.jobs import JobState
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Heartbeat
from common.settings import Settings
from tests.simulation.actors import MAX_LOSSES, SimulatedGateway, SimulatedWorker, text_of
from tests.simulation.faults import Crashed, Faults, with_faults
from tests.support.jobs import MODEL
from tests.support.leaks import find_leaks
from tests.support.oracle import Story

NUM_ACTIONS = 220
MAX_JOBS, MAX_WORKERS = 14, 4
CRASHES, CUTS = 12, 25  # of a thousand commands, each before and after
SETTLE_ROUNDS = 120
HOUR_S = 3600.0
PAST_MS = 1
FLEET_SECRET = b"simulated" * 4


@dataclass(slots=True)
class Order:
    """A job that a client wants, under an Idempotency-Key; it repeats itself until it has a 202."""

    tenant: str
    key: str
    max_tokens: int
    job_id: str = ""  # once it is accepted
    is_cancelled: bool = False
    seen: list[tuple[int, bytes]] = field(default_factory=list)  # by somebody who follows it


class World:
    """One seed's fleet. Every action is awaited to its end, so a seed always lives the same."""

    def __init__(self, seed: int, redis: Redis, sync: SyncRedis, keys: Keys) -> None:
        self._random = random.Random(seed)
        self._faults = Faults(self._random, CRASHES, CUTS)
        self._redis = redis
        self._keys = keys
        self._store = JobStore(redis, keys)
        self._lanes = Lanes(redis, keys, MODEL)
        self._heartbeat = Heartbeat(sync, keys, HOUR_S)
        self._faulty = with_faults(redis, self._faults)
        given: dict[str, Any] = {"default_model": MODEL, "key_prefix": keys.prefix}
        self._settings = Settings(**given)
        self._gateway = SimulatedGateway(self._faulty, keys, self._settings)
        self._num_workers = 0
        self.orders: list[Order] = []
        self.workers: list[SimulatedWorker] = []

    async def live(self) -> None:
        """Let everything happen that can."""
        await self._redis.set(self._keys.secret, FLEET_SECRET)
        await self._forget_scripts()  # a script that is missing is one command more
        actions = {
            self._submit: 3, self._repeat: 3, self._cancel: 1, self._follow: 3,
            self._hire: 1, self._claim: 5, self._generate: 6, self._flush: 6, self._beat: 2,
            self._expire: 1, self._freeze: 3, self._sweep: 2, self._kill: 1, self._drain: 1,
            self._restart: 1,
        }  # fmt: skip
        for action in self._random.choices([*actions], [*actions.values()], k=NUM_ACTIONS):
            await action()

    async def settle(self) -> None:
        """End the faults; what was frozen wakes up, what is dead is noticed, all work is done."""
        self._faults.crashes = self._faults.cuts = 0
        for order in self.orders:
            if not order.job_id:
                await self._send(order)
        living = {worker.id for worker in self.workers}
        await self._expire_all_but(living)
        await self._hire(sure=True)
        for _ in range(SETTLE_ROUNDS):
            for worker in list(self.workers):
                worker.beat()
                await worker.sweep()
                await worker.claim()
                worker.generate(self._random, 60)
                await worker.flush()
            if not await self._lanes.unfinished() and not await self._lanes.depths():
                return
        raise AssertionError(f"work is left for ever: {await self._lanes.depths()}")

    async def check(self) -> None:
        """Check every promise."""
        for order in self.orders:
            story = await Story.read(self._store, order.job_id)
            log = await self._store.log(order.job_id)
            assert log[: len(order.seen)] == order.seen, f"{order.job_id}: the past has changed"
            num_tokens = story.end.usage.completion_tokens
            assert story.text == text_of(order.job_id, num_tokens), f"{order.job_id}: other tokens"
            match story.end:
                case Completed():
                    assert num_tokens == order.max_tokens
                case Cancelled():
                    assert order.is_cancelled, f"{order.job_id}: nobody cancelled it"
                case Failed(error=error):
                    assert error is not None
                    assert error.type == "worker-lost"
                    assert len(story.workers) >= MAX_LOSSES, f"{order.job_id}: given up too early"
                case other:
                    raise AssertionError(f"{order.job_id} ended as {other.kind}")
        await self._check_letters()
        for worker in self.workers:
            assert not worker.num_attempts, f"{worker.id} believes to run something"
        assert not await find_leaks(self._redis, self._keys.prefix)

    async def _check_letters(self) -> None:
        """Check that those and only those jobs have a letter, one each, that were given up."""
        filed = await DeadLetters(self._redis, self._keys, MODEL).all()
        given_up = []
        for order in self.orders:
            record = await self._store.record(order.job_id)
            if record and record.state is JobState.FAILED:
                given_up.append(order.job_id)
        assert sorted(given_up) == sorted(each.letter.job for each in filed)

    async def _submit(self) -> None:
        if len(self.orders) < MAX_JOBS:
            number = len(self.orders)
            tenant = self._random.choice("ab")
            order = Order(tenant, f"key-{number}", self._random.randint(1, 60))
            self.orders.append(order)
            await self._try(self._send(order))

    async def _repeat(self) -> None:
        """A client that has its 202 may repeat itself too: its answer was lost on the way."""
        if self.orders:
            await self._try(self._send(self._random.choice(self.orders)))

    async def _send(self, order: Order) -> None:
        job_id = await self._gateway.submit(order.tenant, order.key, order.max_tokens)
        assert order.job_id in ("", job_id), "one key, two jobs"
        order.job_id = job_id

    async def _cancel(self) -> None:
        accepted = [order for order in self.orders if order.job_id]
        if accepted:
            order = self._random.choice(accepted)
            order.is_cancelled = True
            await self._try(self._gateway.cancel(order.tenant, order.job_id))

    async def _follow(self) -> None:
        """Somebody reads on."""
        accepted = [order for order in self.orders if order.job_id]
        if accepted:
            order = self._random.choice(accepted)
            order.seen += await self._store.log(order.job_id, len(order.seen))

    async def _hire(self, *, sure: bool = False) -> None:
        if sure or len(self.workers) < MAX_WORKERS:
            self._num_workers += 1
            name = f"w{self._num_workers}"
            self.workers.append(SimulatedWorker(name, self._faulty, self._keys, self._heartbeat))

    async def _claim(self) -> None:
        if worker := self._pick():
            await self._let(worker, worker.claim())

    async def _generate(self) -> None:
        if worker := self._pick():
            worker.generate(self._random, self._random.randint(1, 8))

    async def _flush(self) -> None:
        if worker := self._pick():
            await self._let(worker, worker.flush(self._random))

    async def _beat(self) -> None:
        if worker := self._pick():
            worker.beat()

    async def _sweep(self) -> None:
        if worker := self._pick():
            await self._let(worker, worker.sweep())

    async def _drain(self) -> None:
        worker = self._pick()
        if worker and len(self.workers) > 1:
            await self._let(worker, worker.drain())
            if worker in self.workers:
                self.workers.remove(worker)

    async def _kill(self) -> None:
        if worker := self._pick():
            self.workers.remove(worker)

    async def _expire(self) -> None:
        """A lease runs out: of a dead worker, or of one that is frozen and does not know it."""
        ids = sorted(await self._redis.zrange(self._keys.model(MODEL).workers, 0, -1))
        if ids:
            await self._redis.zadd(
                self._keys.model(MODEL).workers, {self._random.choice(ids): PAST_MS}
            )

    async def _freeze(self) -> None:
        """A worker hears nothing for longer than its lease; another one takes its jobs over."""
        victim, heir = self._pick(), self._pick()
        if victim is None or heir is None or victim is heir:
            return
        await self._redis.zadd(self._keys.model(MODEL).workers, {victim.id: PAST_MS})
        victim.generate(self._random, 4)  # what it will try to write when it wakes up
        await self._let(heir, heir.sweep())
        await self._let(heir, heir.claim())

    async def _expire_all_but(self, living: set[str]) -> None:
        for worker_id in await self._redis.zrange(self._keys.model(MODEL).workers, 0, -1):
            if worker_id.decode() not in living:
                await self._redis.zadd(self._keys.model(MODEL).workers, {worker_id: PAST_MS})

    async def _restart(self) -> None:
        """A server that comes back knows no scripts; a gateway that comes back knows nothing."""
        await self._forget_scripts()
        self._gateway = SimulatedGateway(self._faulty, self._keys, self._settings)

    async def _forget_scripts(self) -> None:
        for server in await every_server(self._redis):
            await server.script_flush()

    def _pick(self) -> SimulatedWorker | None:
        return self._random.choice(self.workers) if self.workers else None

    async def _let(self, worker: SimulatedWorker, action: Awaitable[None]) -> None:
        """Let a worker do something; it may be its last."""
        if not await self._try(action) and worker in self.workers:
            self.workers.remove(worker)

    async def _try(self, action: Awaitable[None]) -> bool:
        """Await an action and all that it began; return whether its process survived."""
        before = asyncio.all_tasks()
        try:
            await action
        except UNAVAILABLE:
            return True
        except Crashed:
            return False
        finally:
            strays = asyncio.all_tasks() - before
            ends = await asyncio.gather(*strays, return_exceptions=True)
        return not any(isinstance(end, Crashed) for end in ends)
