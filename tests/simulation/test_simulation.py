"""Seeded lives of a fleet: whatever happens, every accepted job ends once, with its tokens."""

import os
from collections.abc import Awaitable, Iterable, Iterator
from unittest.mock import patch

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from common.connections import UNAVAILABLE
from common.job_store import Append, JobStore, Outcome
from common.keys import Keys
from tests.simulation.world import World
from worker import backend, publisher, runner

pytestmark = pytest.mark.anyio

_FIRST = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = range(_FIRST, _FIRST + int(os.environ.get("SEEDS", "50")))


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Nobody waits before trying again: in the simulation the fault is over by then."""
    with patch.object(backend, "RETRY_S", 0), patch.object(runner, "RETRY_S", 0):
        yield


@pytest.fixture(autouse=True)
def _in_turn() -> Iterator[None]:
    """What workers do at once is done in turn: a seed's faults always meet the same commands."""
    with patch.object(publisher, "together", in_turn), patch.object(runner, "together", in_turn):
        yield


async def in_turn(steps: Iterable[Awaitable[object]]) -> None:
    """Take all steps, then raise what the first failed one raised; a crash is the last of them."""
    failed: Exception | None = None
    for step in steps:
        try:
            await step
        except UNAVAILABLE as error:
            failed = failed or error
    if failed is not None:
        raise failed


async def simulate(seed: int, redis: Redis, sync: SyncRedis, keys: Keys) -> None:
    """Live a seed's life and check it; a failure says how to see it again."""
    world = World(seed, redis, sync, keys)
    try:
        await world.live()
        await world.settle()
        await world.check()
    except AssertionError as error:
        again = f"FIRST_SEED={seed} SEEDS=1 make hunt"
        raise AssertionError(f"seed {seed}: {error}; again: {again}") from error


@pytest.mark.fault(38)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_life(seed: int, redis: Redis, lease_redis: SyncRedis, keys: Keys) -> None:
    """Crashes, lost replies, frozen workers, drains and restarts, in any order."""
    await simulate(seed, redis, lease_redis, keys)


@pytest.mark.control(38)
async def test_it_finds_a_missing_fence(redis: Redis, lease_redis: SyncRedis, keys: Keys) -> None:
    """Without the epoch a worker that lost its lease writes on, and the simulation sees it."""
    append = JobStore.append

    async def unfenced(store: JobStore, appends: list[Append]) -> list[tuple[Outcome, int]]:
        forged = []
        for item in appends:
            position = await store.position(item.job_id)
            epoch, next_n = position[:2] if position else (item.epoch, item.n)
            forged.append(Append(item.job_id, epoch, next_n, item.payloads))
        return await append(store, forged)

    with patch.object(JobStore, "append", unfenced):
        seeds = iter(range(200))  # about one in sixteen sees it
        while not await _fails(next(seeds), redis, lease_redis, keys):
            pass


async def _fails(seed: int, redis: Redis, sync: SyncRedis, keys: Keys) -> bool:
    try:
        await simulate(seed, redis, sync, Keys(f"{keys.prefix}-{seed}"))
    except AssertionError as error:
        return str(error).startswith(f"seed {seed}:")
    return False
