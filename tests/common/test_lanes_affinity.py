"""Affinity lanes: a job waits a while for the worker that holds its prompt, then for anyone."""

import pytest
from redis.asyncio import Redis

from common import lanes as lanes_module
from common.jobs import Priority
from common.keys import Keys
from common.lanes import Affinity, Lanes
from common.prompts import Commit, PromptIndex
from common.registry import Heartbeat
from tests.support.jobs import MODEL, TENANT, make_worker
from tests.support.waiting import within

FAR_MS = 2**42
LAPSED_MS = 1
HOUR_S = 3600.0
LONG_MS = 3_600_000
OWNERS = ("w1", "w2", "w3")


@pytest.fixture(autouse=True)
def workers(heartbeat: Heartbeat) -> None:
    """Three workers with a lease."""
    for worker_id in OWNERS:
        heartbeat.join(make_worker(worker_id))


@pytest.fixture
async def chats(redis: Redis, keys: Keys) -> PromptIndex:
    """An index with a prompt ``chat-W`` per worker, each expensive to compute again."""
    prompts = PromptIndex(redis, keys, MODEL)
    for worker in OWNERS:
        await store(prompts, worker)
    return prompts


async def store(prompts: PromptIndex, worker: str, recompute_ms: int = LONG_MS) -> None:
    """Let the worker hold the prompt ``chat-W``."""
    commit = Commit(f"job-of-{worker}", 1, worker, (1, 2), recompute_ms)
    await prompts.commit(TENANT, f"chat-{worker}", commit)


async def enqueue(lanes: Lanes, job_id: str, holder: str, patience_s: float = HOUR_S) -> None:
    """Enqueue a job of the prompt that this worker holds."""
    affinity = Affinity(f"chat-{holder}", patience_s)
    assert await lanes.enqueue(job_id, TENANT, Priority.NORMAL, FAR_MS, affinity)


async def claimed(lanes: Lanes, worker_id: str, count: int = 9) -> list[str]:
    """Return the jobs that the worker claims."""
    return [claim.job_id for claim in await lanes.claim(worker_id, count)]


async def pass_patience(redis: Redis, keys: Keys, holder: str) -> None:
    """Let the time come from which on anybody may take the holder's next job."""
    await redis.zadd(keys.model(MODEL).affinity, {holder: 1}, xx=True)


async def lapse(redis: Redis, keys: Keys, worker_id: str) -> None:
    """Let a worker's lease be over."""
    await redis.zadd(keys.model(MODEL).workers, {worker_id: LAPSED_MS}, xx=True)


@pytest.mark.usefixtures("chats")
async def test_a_job_waits_for_the_holder(lanes: Lanes) -> None:
    """Others do not see it, the holder takes it."""
    await enqueue(lanes, "j1", "w1")
    assert await claimed(lanes, "w2") == []
    [claim] = await lanes.claim("w1", 9)
    assert (claim.job_id, claim.lane) == ("j1", "worker:w1")
    assert await lanes.release("w1", claim)
    assert await lanes.depths() == []


@pytest.mark.usefixtures("chats")
async def test_a_job_is_enqueued_once_in_whatever_lane(lanes: Lanes) -> None:
    """A repeated submit does not put it beside itself."""
    await enqueue(lanes, "j1", "w1")
    affinity = Affinity("chat-w2", HOUR_S)
    assert not await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS, affinity)
    assert not await lanes.enqueue("j1", TENANT, Priority.NORMAL, FAR_MS)
    assert await claimed(lanes, "w2") == []
    assert await claimed(lanes, "w1") == ["j1"]


@pytest.mark.usefixtures("chats")
async def test_the_holder_reads_its_own_lane_after_the_orphans(lanes: Lanes) -> None:
    """Before every priority, because nobody else will for a while."""
    await lanes.enqueue("orphan", TENANT, Priority.LOW, FAR_MS)
    await lanes.claim("w2", 1)
    await lanes.hand_back("w2")
    await lanes.enqueue("high", TENANT, Priority.HIGH, FAR_MS)
    await enqueue(lanes, "own", "w1")
    assert await claimed(lanes, "w1") == ["orphan", "own", "high"]


@pytest.mark.usefixtures("chats")
async def test_late_work_is_stolen_last(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """Past its patience a job goes to whoever has a slot left, the next one still waits."""
    await enqueue(lanes, "late", "w1")
    await enqueue(lanes, "waits", "w1")
    await lanes.enqueue("low", TENANT, Priority.LOW, FAR_MS)
    await pass_patience(redis, keys, "w1")
    assert await claimed(lanes, "w2", 1) == ["low"]
    assert await claimed(lanes, "w2") == ["late"]
    assert await claimed(lanes, "w2") == []
    assert await claimed(lanes, "w1") == ["waits"]


@pytest.mark.usefixtures("chats")
async def test_a_dead_holders_work_is_stolen_at_once(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """Whether its lease is just over or the sweep has removed it."""
    for job_id in ("j1", "j2", "j3"):
        await enqueue(lanes, job_id, "w1")
    await lapse(redis, keys, "w1")
    assert await claimed(lanes, "w2", 1) == ["j1"]
    await lanes.sweep("w1")
    assert await claimed(lanes, "w2") == ["j2", "j3"]


@pytest.mark.usefixtures("chats")
async def test_the_sweep_moves_what_the_dead_holder_had_claimed(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """Entries of affinity lanes become orphans as those of others do; what waits is stolen."""
    await enqueue(lanes, "held", "w1")
    await enqueue(lanes, "waits", "w1")
    assert await claimed(lanes, "w1", 1) == ["held"]
    await lapse(redis, keys, "w1")
    assert await lanes.sweep("w1") == ["held"]
    claims = await lanes.claim("w2", 9)
    assert [(c.job_id, c.lane) for c in claims] == [("held", "orphans"), ("waits", "worker:w1")]
    for claim in claims:
        assert await lanes.release("w2", claim)
    assert await lanes.depths() == []


@pytest.mark.usefixtures("chats")
async def test_handing_back_gives_an_affinity_entry_to_anyone(lanes: Lanes) -> None:
    """A draining holder's claim is an orphan."""
    await enqueue(lanes, "j1", "w1")
    await lanes.claim("w1", 1)
    assert await lanes.hand_back("w1") == ["j1"]
    assert await claimed(lanes, "w2") == ["j1"]


@pytest.mark.usefixtures("chats")
async def test_a_draining_holders_work_is_anybodys(lanes: Lanes) -> None:
    """All that waits for it, in order, and the holder need not have gone."""
    for job_id in ("j1", "j2", "j3"):
        await enqueue(lanes, job_id, "w1")
    await lanes.retire("w1")
    assert await claimed(lanes, "w2", 2) == ["j1", "j2"]
    assert await claimed(lanes, "w3") == ["j3"]


@pytest.mark.usefixtures("chats")
async def test_retiring_rings_the_bell(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """Idle workers take what became theirs at once."""
    async with within(), redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(keys.model(MODEL).bell)
        await pubsub.get_message(ignore_subscribe_messages=False, timeout=None)
        await lanes.retire("w1")
        assert (await anext(pubsub.listen()))["data"] == b""


@pytest.mark.parametrize("how", ["leaves", "swept", "swept before"])
async def test_no_draining_worker_is_remembered_after_its_end(
    how: str, *, lanes: Lanes, heartbeat: Heartbeat, redis: Redis, keys: Keys
) -> None:
    """However it ends, also where its retirement comes late."""
    if how != "swept before":
        await lanes.retire("w1")
        assert await redis.exists(keys.model(MODEL).draining)
    if how == "leaves":
        heartbeat.leave("w1", MODEL)
    else:
        await lapse(redis, keys, "w1")
        await lanes.sweep("w1")
    if how == "swept before":
        await lanes.retire("w1")
    assert not await redis.exists(keys.model(MODEL).draining)


@pytest.mark.usefixtures("chats")
async def test_no_turn_of_a_worker_is_remembered_after_its_lane(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """Also where another one reads the last of it."""
    tenants = keys.model(MODEL).tenants
    for job_id in ("j1", "j2"):
        await enqueue(lanes, job_id, "w1")
    assert await claimed(lanes, "w1", 1) == ["j1"]
    assert await redis.hexists(tenants, "own:w1")  # type: ignore[misc]
    await lapse(redis, keys, "w1")
    assert await claimed(lanes, "w2") == ["j2"]
    assert not await redis.hexists(tenants, "own:w1")  # type: ignore[misc]


@pytest.mark.parametrize("why", ["unknown", "dead", "swept", "draining", "cheap", "impatient"])
async def test_without_a_holder_worth_the_wait_it_is_the_tenants_lane(
    why: str, chats: PromptIndex, lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """The job waits for anyone, with its priority."""
    patience_s = HOUR_S
    match why:
        case "unknown":
            await chats.forget(TENANT, "chat-w1")
        case "dead":
            await lapse(redis, keys, "w1")
        case "swept":
            await lapse(redis, keys, "w1")
            await lanes.sweep("w1")
        case "draining":
            await lanes.retire("w1")
        case "cheap":
            await chats.forget(TENANT, "chat-w1")
            await store(chats, "w1", recompute_ms=0)
        case _:
            patience_s = 0.0
    await enqueue(lanes, "j1", "w1", patience_s)
    [claim] = await lanes.claim("w2", 9)
    assert claim.lane == f"normal:{TENANT}"


@pytest.mark.parametrize(("recompute_ms", "patience_s", "expected_ms"), [
    (LONG_MS, 5.0, 5_000), (250, 5.0, 250),
])  # fmt: skip
async def test_the_patience_is_what_the_wait_can_save(
    recompute_ms: int,
    patience_s: float,
    expected_ms: int,
    *,
    chats: PromptIndex,
    lanes: Lanes,
    redis: Redis,
    keys: Keys,
) -> None:
    """No longer than the recomputing takes, and no longer than the setting allows."""
    await chats.forget(TENANT, "chat-w1")
    await store(chats, "w1", recompute_ms)
    seconds, micros = await redis.time()
    before_ms = int(seconds) * 1000 + int(micros) // 1000
    await enqueue(lanes, "j1", "w1", patience_s)
    steal_at = await redis.zscore(keys.model(MODEL).affinity, "w1")
    assert steal_at is not None
    assert 0 <= steal_at - before_ms - expected_ms < 5_000
    [(_, fields)] = await redis.xrange(keys.model(MODEL).lane("worker:w1"))
    assert fields == {b"job": b"j1", b"steal_at": b"%d" % steal_at}


@pytest.mark.usefixtures("chats")
async def test_enqueue_rings_the_bell_for_the_holder(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """It need not wait for its next poll."""
    async with within(), redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(keys.model(MODEL).bell)
        await pubsub.get_message(ignore_subscribe_messages=False, timeout=None)
        await enqueue(lanes, "j1", "w1")
        assert (await anext(pubsub.listen()))["data"] == b""


async def test_a_job_keeps_its_prompt_alive(
    chats: PromptIndex, lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """What a waiting job builds on does not expire before it starts."""
    await redis.pexpire(keys.model(MODEL).prompt(TENANT, "chat-w1"), 5000)
    await enqueue(lanes, "j1", "w1")
    stored = await chats.read(TENANT, "chat-w1")
    assert stored
    assert stored.ttl_ms > 5000


@pytest.mark.usefixtures("chats")
async def test_a_look_for_late_work_is_bounded(
    lanes: Lanes, redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees those that may be taken first, however many workers there are."""
    monkeypatch.setattr(lanes_module, "STEAL_LIMIT", 1)
    await enqueue(lanes, "j1", "w1")
    await enqueue(lanes, "j2", "w2")
    await pass_patience(redis, keys, "w2")
    assert await claimed(lanes, "w3") == ["j2"]


@pytest.mark.usefixtures("chats")
async def test_depths_have_the_affinity_lanes(lanes: Lanes) -> None:
    """What waits for a holder waits, for every gauge."""
    await enqueue(lanes, "j1", "w1")
    await enqueue(lanes, "j2", "w1")
    await lanes.claim("w1", 1)
    [depth] = await lanes.depths()
    assert (depth.lane, depth.waiting, depth.pending) == ("worker:w1", 1, 1)
