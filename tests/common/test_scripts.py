"""The scripts: on a server that lost them, in a cluster, and on another implementation."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from common import job_store, lanes, prompts, registry
from common.connections import COMMAND_TIMEOUT_S, command_client, every_server, lease_client
from common.dead_letters import Letter
from common.events import Accepted, ErrorInfo, Retrying, Started
from common.job_store import Append, JobStore, Outcome
from common.jobs import Priority
from common.keys import Keys
from common.lanes import Affinity, Lanes, LeaseLapsed
from common.limits import Limits
from common.prompts import Commit, PromptIndex
from common.registry import Heartbeat, Registry
from common.scripts import Script
from headrace.addresses import free_port
from tests.support.cutting import cut_for_now
from tests.support.jobs import (
    BROKEN,
    MODEL,
    RETENTION_MS,
    STOPPED,
    TENANT,
    append,
    make_job,
    make_payloads,
    make_worker,
    read,
    start,
    submit,
)
from tests.support.servers import STARTABLE, Backend, Server
from tests.support.waiting import eventually

LUA = resources.files("common").joinpath("lua")
TEXTS = {Path(str(file)).stem: file.read_text() for file in LUA.iterdir()}
NAMES = {name for name in TEXTS if not name.startswith("_")}
SCRIPTS = {
    script.name: script
    for module in (job_store, lanes, prompts, registry)
    for script in vars(module).values()
    if isinstance(script, Script)
}
FAR_MS = 2**42
LETTER = Letter("l0", TENANT, ErrorInfo("worker-lost", "gone"))


@dataclass(frozen=True)
class Fleet:
    """All typed callers over one server."""

    store: JobStore
    lanes: Lanes
    registry: Registry
    heartbeat: Heartbeat
    prompts: PromptIndex

    @classmethod
    def of(cls, redis: Redis, lease_redis: SyncRedis, keys: Keys) -> "Fleet":
        """Return the callers over these clients."""
        lanes = Lanes(redis, keys, MODEL)
        return cls(
            JobStore(redis, keys),
            lanes,
            Registry(redis, keys),
            Heartbeat(lease_redis, keys, 60),
            PromptIndex(redis, keys, MODEL),
        )


async def _lapses(lanes: Lanes, worker_id: str) -> bool:
    try:
        await lanes.claim(worker_id, 1)
    except LeaseLapsed:
        return True
    return False


async def _tell_of_jobs(store: JobStore) -> list[Any]:
    """Take jobs through every script of the record; returns all answers that are no times."""
    told: list[Any] = []
    for job_id in ("job_a", "job_a", "job_b"):
        job = make_job(job_id)
        told.append((await store.submit(job, Accepted(job_id, MODEL))).created)
    waiting = await read(store, "job_a")
    workers = ("w1", "w2")
    told += [(await store.start(waiting, name, Started(name, 1)))[0] for name in workers]
    first = (await read(store, "job_a")).epoch
    positions = [(first, 2), (first, 2), (first, 3), (9, 4), (first, 9)]
    told += [await append(store, "job_a", *position, "x", "y") for position in positions]
    drain, owners = Retrying("drain"), ("w2", "w1", "w1")
    told += [await store.requeue("job_a", owner, drain, lost=True) for owner in owners]
    told.append(await append(store, "job_a", first, 6, "zombie"))
    second = await start(store, "job_a", "w2")
    told += [await store.cancel(job_id) for job_id in ("job_a", "job_b", "job_x")]
    told.append(await append(store, "job_a", second, 7, "z"))
    records = [[store._keys.job(job_id).record] for job_id in ("job_a", "job_x")]
    told += [await job_store._MARK_DURABLE.run(store._redis, record, []) for record in records]
    told.append((await store.start(await read(store, "job_b"), "w1", Started("w1", 1)))[0])
    ends = [("job_a", first, 8), ("job_a", second, 9), ("job_a", second, 7), ("job_b", 0, 1)]
    for job_id, epoch, n in ends:
        told.append(await store.finish(job_id, (epoch, n), BROKEN, RETENTION_MS))
    for _ in range(2):
        told.append(await store.finish("job_a", (second, 8), STOPPED, RETENTION_MS))
    told.append(await store.cancel("job_a"))
    told += [await store.log(job_id) for job_id in ("job_a", "job_b")]
    told += [
        replace(record, epoch=0, created_ms=0, started_ms=0, finished_ms=0, deadline_ms=0)
        for record in await store.records(["job_a", "job_b"])
        if record
    ]
    return told


async def _tell_of_lanes(fleet: Fleet) -> list[Any]:
    """Take jobs through every script of the lanes and leases; returns all answers."""
    lanes, heartbeat = fleet.lanes, fleet.heartbeat
    told: list[Any] = [heartbeat.renew(make_worker("w1"))]
    for worker_id in ("w1", "w2"):
        heartbeat.join(make_worker(worker_id))
    told.append(heartbeat.renew(make_worker("w1")))
    for i, priority in enumerate([*Priority, *Priority, Priority.HIGH]):
        told.append(await lanes.enqueue(f"j{i}", f"{TENANT}{i % 2}", priority, FAR_MS))
    told.append(await lanes.enqueue("j0", TENANT, Priority.LOW, FAR_MS))
    claims = await lanes.claim("w1", 4)
    told.append([(claim.job_id, claim.lane) for claim in claims])
    told += [await lanes.release(worker_id, claims[0]) for worker_id in ("w2", "w1", "w1")]
    told.append(await lanes.sweep("w1"))
    told.append(sorted(await lanes.hand_back("w1", [claims[1].job_id])))
    told.append(await lanes.depths())
    heartbeat.leave("w1", MODEL)
    told.append(await lanes.sweep("w1"))
    told += [await _lapses(lanes, worker_id) for worker_id in ("w1", "w2")]
    told += [await lanes.depths(), await lanes.unfinished(), await lanes.overdue(FAR_MS)]
    await lanes.settle("j4")
    told.append(await lanes.unfinished())
    told += await _tell_of_limits(lanes)
    told.append([worker.info for worker in await fleet.registry.workers()])
    return told


async def _tell_of_limits(lanes: Lanes) -> list[Any]:
    """Let a tenant with limits ask for more than it may; returns all answers that are no times."""
    limits = Limits(max_queued=1, max_running=1, tokens_per_minute=100, weight=2)
    told: list[Any] = []
    for tenant, max_queued, tokens in [("t", 99, 60), ("t", 99, 60), ("t", 1, 1)]:
        admission = await lanes.admit(tenant, limits, max_queued, tokens)
        told.append((admission.verdict, admission.jobs_left))
    told += [
        await lanes.enqueue(job, "t", Priority.LOW, FAR_MS, limits=limits) for job in ("l0", "l1")
    ]
    told.append((await lanes.admit("t", limits, 99, 1)).verdict)
    for _ in range(2):
        claims = [claim for claim in await lanes.claim("w2", 99) if claim.job_id in ("l0", "l1")]
        told.append([claim.job_id for claim in claims])
        told += [await lanes.release("w2", claim, LETTER) for claim in claims]
    return told


async def _tell_of_prompts(fleet: Fleet) -> list[Any]:
    """Let jobs leave prompts, and others wait for who holds them; returns all answers."""
    lanes, prompts = fleet.lanes, fleet.prompts
    told: list[Any] = []
    for worker_id in ("p1", "p2"):
        fleet.heartbeat.join(make_worker(worker_id))
    for job, epoch in [("a", 2), ("a", 1), ("b", 1)]:
        commit = Commit(job, epoch, "p1", (epoch,), recompute_ms=10_000)
        told.append(await prompts.commit(TENANT, "chat", commit))
    stored = await prompts.use(TENANT, "chat")
    told.append(stored and (stored.version, stored.ids, stored.job))
    for job in ("q0", "q1", "q2"):
        affinity = Affinity("chat", 60.0)
        told.append(await lanes.enqueue(job, TENANT, Priority.HIGH, FAR_MS, affinity))
    for worker_id, count in [("p2", 9), ("p1", 1), ("p2", 9)]:
        told.append([(c.job_id, c.lane) for c in await lanes.claim(worker_id, count)])
    told.append(await lanes.hand_back("p1"))
    await lanes.retire("p1")
    fleet.heartbeat.leave("p1", MODEL)
    claims = await lanes.claim("p2", 9)
    told += [[(c.job_id, c.lane) for c in claims], await lanes.depths()]
    told += [await lanes.release("p2", claim) for claim in claims]
    forgotten = await prompts.forget(TENANT, "chat")
    told += [await lanes.depths(), forgotten and (forgotten.version, forgotten.ids)]
    fleet.heartbeat.leave("p2", MODEL)
    return told


async def _tell(fleet: Fleet) -> list[Any]:
    told = await _tell_of_jobs(fleet.store) + await _tell_of_prompts(fleet)
    return told + await _tell_of_lanes(fleet)


@pytest.fixture
def fleet(redis: Redis, lease_redis: SyncRedis, keys: Keys) -> Fleet:
    """All callers over the real server."""
    return Fleet.of(redis, lease_redis, keys)


@pytest.mark.fault(40)
async def test_another_implementation_gives_the_same_answers(fleet: Fleet, keys: Keys) -> None:
    """What the scripts say rests on documented behaviour: fakeredis and the server agree."""
    server = FakeServer(version=(7,))
    async with FakeAsyncRedis(server=server) as redis:
        lease_redis = FakeRedis(server=server)
        fake = await _tell(Fleet.of(redis, lease_redis, keys))
        lease_redis.close()
    assert await _tell(fleet) == fake


@pytest.mark.control(40)
async def test_another_answer_would_be_seen(
    fleet: Fleet, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison bites: one script that does something else makes another story."""
    server = FakeServer(version=(7,))
    with monkeypatch.context() as patched:
        cut_for_now(patched, lanes._RELEASE, "return 'OK'", "return 'NOT_OWNER'")
        async with FakeAsyncRedis(server=server) as redis:
            lease_redis = FakeRedis(server=server)
            fake = await _tell(Fleet.of(redis, lease_redis, keys))
            lease_redis.close()
    assert await _tell(fleet) != fake


def test_there_is_one_clock() -> None:
    """Times that are compared are rounded in one place."""
    assert [name for name, text in TEXTS.items() if "'TIME'" in text] == ["_clock"]


async def test_the_story_runs_every_script(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new script needs a place in the story that the other tests here tell."""
    ran: set[str] = set()
    names = {script.sha: name for name, script in SCRIPTS.items()}
    _watch(monkeypatch, lambda sha: ran.add(names[sha]))
    await _tell(fleet)
    assert ran == NAMES


def _watch(monkeypatch: pytest.MonkeyPatch, see: Callable[[str], None]) -> None:
    for client in (Redis, SyncRedis):
        plain = client.evalsha

        def evalsha(self: Any, sha: str, *rest: Any, plain: Any = plain) -> Any:
            see(sha)
            return plain(self, sha, *rest)

        monkeypatch.setattr(client, "evalsha", evalsha)


@pytest.fixture(params=STARTABLE, ids=str)
def cluster_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A cluster of one node, which refuses what would not run on one of many."""
    backend: Backend = request.param
    assert backend.binary
    # Its usual bus port, 10 000 above the other, may not exist.
    flags = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server = Server(backend.binary, tmp_path, *flags)
    server.start()
    yield server.url
    server.kill()


async def _own_all_slots(redis: Redis) -> None:
    command: Callable[..., Awaitable[bytes]] = redis.execute_command
    await command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)

    async def is_up() -> bool:
        return "cluster_state:ok" in str(await command("CLUSTER", "INFO"))

    await eventually(is_up)


async def test_no_step_leaves_its_slot_in_a_cluster(cluster_url: str, keys: Keys) -> None:
    """Every script and transaction stays in one slot; the control is one that does not."""
    lease_redis = lease_client(cluster_url, COMMAND_TIMEOUT_S)
    async with command_client(cluster_url) as redis:
        await _own_all_slots(redis)
        with pytest.raises(ResponseError, match="same slot"):
            await redis.mget(keys.job("job_a").record, keys.job("job_b").record)
        assert await _tell(Fleet.of(redis, lease_redis, keys))
    lease_redis.close()


@pytest.mark.fault(19)
@pytest.mark.control(19)
async def test_a_server_that_lost_the_scripts_gets_them_again(fleet: Fleet, redis: Redis) -> None:
    """After a script flush everything goes on; the control is that the script is really gone."""
    job = await submit(fleet.store)
    sha, servers = SCRIPTS["start"].sha, await every_server(redis)
    for server in servers:
        await server.script_flush()
        with pytest.raises(NoScriptError):
            await server.evalsha(sha, 0)  # type: ignore[misc]
    assert await start(fleet.store, job.id) > job.epoch
    assert [True] in [await server.script_exists(sha) for server in servers]


@pytest.mark.fault(19)
async def test_an_append_pipeline_outlives_a_script_flush(fleet: Fleet, redis: Redis) -> None:
    """Every job of the pipeline gets its events, once, in a step that found no script."""
    jobs = [await submit(fleet.store) for _ in range(3)]
    appends = [
        Append(job.id, await start(fleet.store, job.id), 2, make_payloads("a", "b")) for job in jobs
    ]
    await redis.script_flush()
    assert await fleet.store.append(appends) == [(Outcome.OK, 4)] * 3
    assert [len(await fleet.store.log(job.id)) for job in jobs] == [4, 4, 4]


async def test_an_error_of_a_script_is_raised(fleet: Fleet, redis: Redis, keys: Keys) -> None:
    """A reply that is an error is no answer: it reaches the caller as what it is."""
    await redis.set(keys.job("job_a").record, "no hash", ex=60)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await append(fleet.store, "job_a", 1, 2, "a")
