"""Jobs whose place in a lane was lost with the last second of Redis."""

import math
from unittest.mock import AsyncMock

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from common.connections import command_client, lease_client
from common.job_store import JobStore
from common.jobs import Priority
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Heartbeat, Registry
from gateway.recovery import Found, Recovery
from tests.support.jobs import MODEL, TENANT, make_job, make_worker, start, submit
from tests.support.leaks import find_keys
from tests.support.servers import Server
from tests.support.topologies import ask

pytestmark = pytest.mark.anyio

FAR_MS = 2**42


@pytest.fixture
def lanes(redis: Redis, keys: Keys) -> Lanes:
    """The lanes of the model."""
    return Lanes(redis, keys, MODEL)


@pytest.fixture
def store(redis: Redis, keys: Keys) -> JobStore:
    """The job records."""
    return JobStore(redis, keys)


async def begun(redis: Redis, keys: Keys) -> bytes:
    """Return the key that says that somebody has looked, or is looking."""
    [name] = await find_keys(redis, keys.recovery(""))
    return name


async def die(*_: object) -> int:
    """Be a gateway that ends in mid-work."""
    raise ConnectionAbortedError


async def look_again(recovery: Recovery, redis: Redis, keys: Keys) -> None:
    """Look when the time of whoever looked before is over."""
    await redis.delete(await begun(redis, keys))
    await recovery.look()


async def look_twice(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, error: ResponseError
) -> int:
    """Look at a server that answers ``INFO`` with an error; returns how often it was asked."""
    info = AsyncMock(side_effect=error)
    monkeypatch.setattr(Redis, "info", info)
    recovery = Recovery(redis, keys)
    for _ in range(2):
        await recovery.look()
    return info.await_count


async def waiting(lanes: Lanes) -> list[str]:
    """Return the jobs that a worker gets."""
    return sorted(claim.job_id for claim in await lanes.claim("w1", 99))


@pytest.mark.fault(11)
async def test_a_job_without_a_place_gets_one(
    redis: Redis, lease_redis: SyncRedis, keys: Keys, store: JobStore, lanes: Lanes
) -> None:
    """Waiting, or running under a worker that is dead; all others are left where they are."""
    heartbeat = Heartbeat(lease_redis, keys, 60)
    for worker_id in ("w1", "alive"):
        heartbeat.join(make_worker(worker_id))
    lost, orphaned, placed, running, ended = [
        (await submit(store, make_job())).id for _ in range(5)
    ]
    await lanes.enqueue(placed, TENANT, Priority.NORMAL, FAR_MS)
    await start(store, orphaned, "dead")
    await start(store, running, "alive")
    await redis.hset(keys.job(ended).record, "state", "completed")  # type: ignore[misc]
    assert await Recovery(redis, keys).mend_all() == Found(num_mended=2, num_running=1)
    assert await waiting(lanes) == sorted([lost, orphaned, placed])
    assert await Recovery(redis, keys).mend_all() == Found(num_running=1)


async def test_a_record_that_cannot_be_read_is_passed_by(
    redis: Redis, lease_redis: SyncRedis, keys: Keys, store: JobStore, lanes: Lanes
) -> None:
    """It stops neither the gateway nor its neighbours' recovery."""
    Heartbeat(lease_redis, keys, 60).join(make_worker("w1"))
    good, bad = [(await submit(store, make_job())).id for _ in range(2)]
    await redis.hset(keys.job(bad).record, mapping={"spec": b"\xc1"})  # type: ignore[misc]
    await Recovery(redis, keys).look()
    assert await waiting(lanes) == [good]


async def test_without_the_rights_it_leaves_it(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may lack `info` and `scan`: the gateway asks once, and lives."""
    refusal = NoPermissionError("User has no permissions to run the 'info' command")
    assert await look_twice(redis, keys, monkeypatch, refusal) == 1
    assert await Registry(redis, keys).uptime_s() == math.inf


async def test_every_run_of_the_server_is_looked_at_once(
    redis: Redis, lease_redis: SyncRedis, keys: Keys, store: JobStore, lanes: Lanes
) -> None:
    """By one gateway of all; a server that was started again is looked at again."""
    Heartbeat(lease_redis, keys, 60).join(make_worker("w1"))
    first, second = Recovery(redis, keys), Recovery(redis, keys)
    await first.look()
    late = (await submit(store, make_job())).id
    for gateway in (first, second):
        await gateway.look()
    assert await waiting(lanes) == []
    await redis.delete(await begun(redis, keys))
    await Recovery(redis, keys).look()
    assert await waiting(lanes) == [late]


async def test_a_gateway_that_dies_while_it_looks_is_followed_by_another_one(
    redis: Redis,
    lease_redis: SyncRedis,
    keys: Keys,
    store: JobStore,
    lanes: Lanes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it had begun counts for nothing once its time is over."""
    Heartbeat(lease_redis, keys, 60).join(make_worker("w1"))
    job_id = (await submit(store, make_job())).id
    recovery = Recovery(redis, keys)
    with monkeypatch.context() as patched:
        patched.setattr(Recovery, "mend_all", die)
        with pytest.raises(ConnectionAbortedError):
            await recovery.look()
    await recovery.look()
    assert await waiting(lanes) == []
    await redis.delete(await begun(redis, keys))
    await recovery.look()
    assert await waiting(lanes) == [job_id]


async def test_a_running_job_without_a_place_is_looked_at_until_it_is_over(
    redis: Redis, lease_redis: SyncRedis, keys: Keys, store: JobStore, lanes: Lanes
) -> None:
    """While its worker lives it is that one's; when it has died, nothing else leads to the job."""
    heartbeat = Heartbeat(lease_redis, keys, 60)
    for worker_id in ("w1", "alive"):
        heartbeat.join(make_worker(worker_id))
    job_id = (await submit(store, make_job())).id
    await start(store, job_id, "alive")
    recovery = Recovery(redis, keys)
    await recovery.look()
    await start(store, job_id, "alive")  # it moves
    await look_again(recovery, redis, keys)
    assert await waiting(lanes) == []
    heartbeat.leave("alive", MODEL)
    await look_again(recovery, redis, keys)
    assert await waiting(lanes) == [job_id]
    assert await redis.get(await begun(redis, keys)) == b"done"


@pytest.mark.fault(20)
async def test_a_running_job_that_stands_still_is_nobodys(
    redis: Redis, lease_redis: SyncRedis, keys: Keys, store: JobStore, lanes: Lanes
) -> None:
    """A shard that lost a job's end leaves it to a worker that lives and is done with it."""
    heartbeat = Heartbeat(lease_redis, keys, 60)
    for worker_id in ("w1", "alive"):
        heartbeat.join(make_worker(worker_id))
    job_id = (await submit(store, make_job())).id
    await start(store, job_id, "alive")
    recovery = Recovery(redis, keys)
    await recovery.look()
    assert await waiting(lanes) == []
    await look_again(recovery, redis, keys)
    assert await waiting(lanes) == [job_id]


@pytest.mark.fault(20)
async def test_a_server_that_is_promoted_again_is_looked_at_again(
    own_server: Server, keys: Keys
) -> None:
    """It was not started anew, but what it has may be what another primary had."""
    async with command_client(own_server.url) as redis:
        Heartbeat(lease_client(own_server.url, 5), keys, 60).join(make_worker("w1"))
        recovery, store = Recovery(redis, keys), JobStore(redis, keys)
        await recovery.look()
        job_id = (await submit(store, make_job())).id
        await recovery.look()
        assert await waiting(Lanes(redis, keys, MODEL)) == []
        ask(own_server, "REPLICAOF", "127.0.0.1", 1)
        ask(own_server, "REPLICAOF", "NO", "ONE")
        await recovery.look()
        assert await waiting(Lanes(redis, keys, MODEL)) == [job_id]


async def test_an_answer_that_is_no_refusal_is_asked_for_again(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails once may work the next time."""
    assert await look_twice(redis, keys, monkeypatch, ResponseError("a moment, please")) == 2
