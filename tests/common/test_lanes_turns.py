"""Whose turn it is: tenants by weight and within their slots, priorities by age."""

import asyncio
from collections import Counter

import pytest
from redis.asyncio import Redis

from common import lanes as lanes_module
from common.jobs import Priority
from common.keys import Keys
from common.lanes import Affinity, Claim, Lanes
from common.limits import Limits, Verdict
from common.prompts import Commit, PromptIndex
from common.registry import Heartbeat
from tests.support.jobs import MODEL, make_worker

pytestmark = pytest.mark.anyio

FAR_MS = 2**42
MANY, AT_ONCE = 10_000, 500


@pytest.fixture(autouse=True)
def workers(heartbeat: Heartbeat) -> None:
    """Two workers with a lease."""
    for worker_id in ("w1", "w2"):
        heartbeat.join(make_worker(worker_id))


async def enqueue(
    lanes: Lanes,
    tenant: str,
    count: int,
    limits: Limits | None = None,
    priority: Priority = Priority.NORMAL,
) -> list[str]:
    """Let so many jobs of a tenant wait; returns their IDs."""
    jobs = [f"{tenant}{priority[0]}{number:05}" for number in range(count)]
    for first in range(0, count, AT_ONCE):
        calls = [
            lanes.enqueue(job_id, tenant, priority, FAR_MS, limits=limits)
            for job_id in jobs[first : first + AT_ONCE]
        ]
        assert all(await asyncio.gather(*calls))
    return jobs


async def claim_one(lanes: Lanes) -> Claim:
    """Let a worker with one free slot claim."""
    [claim] = await lanes.claim("w1", 1)
    return claim


async def tenants_served(lanes: Lanes, count: int) -> Counter[str]:
    """Return how many of the next jobs are whose."""
    claims = [await claim_one(lanes) for _ in range(count)]
    return Counter(claim.job_id[0] for claim in claims)


@pytest.mark.fault(35)
async def test_ten_thousand_jobs_delay_one_by_one_turn(lanes: Lanes) -> None:
    """The single job of a tenant that comes late is among the next two that are claimed."""
    await enqueue(lanes, "a", MANY)
    await tenants_served(lanes, 100)
    await enqueue(lanes, "b", 1)
    assert (await tenants_served(lanes, 2))["b"] == 1


@pytest.mark.control(35)
async def test_in_one_queue_it_would_wait_for_all_of_them(lanes: Lanes) -> None:
    """The control: under one tenant's name the same job is behind the ten thousand."""
    await enqueue(lanes, "a", MANY)
    await lanes.enqueue("b", "a", Priority.NORMAL, FAR_MS)
    assert "b" not in await tenants_served(lanes, 200)


async def test_turns_are_shared_by_weight(lanes: Lanes) -> None:
    """A tenant of weight 3 is served three times as often as one of weight 1, one of 0.5 half."""
    for tenant, weight in (("a", 3.0), ("b", 1.0), ("c", 0.5)):
        await enqueue(lanes, tenant, 100, Limits(weight=weight))
    assert await tenants_served(lanes, 90) == {"a": 60, "b": 20, "c": 10}


async def test_a_heavy_tenant_does_not_delay_one_that_comes(lanes: Lanes) -> None:
    """Weight is a share of many turns; a tenant's first job waits for one of them."""
    await enqueue(lanes, "a", 200, Limits(weight=100))
    await tenants_served(lanes, 50)
    await enqueue(lanes, "b", 1)
    assert (await tenants_served(lanes, 2))["b"] == 1


async def test_leaving_the_ring_is_no_way_past_the_others(lanes: Lanes) -> None:
    """A tenant that adds its jobs one by one, always to an empty lane, gets its share only."""
    await enqueue(lanes, "a", 100)
    await enqueue(lanes, "c", 100)
    served: Counter[str] = Counter()
    for _ in range(60):
        # Refused while the one before it waits.
        await lanes.enqueue(f"b{served['b']}", "b", Priority.NORMAL, FAR_MS)
        served += await tenants_served(lanes, 1)
    assert served["b"] <= 21


async def test_a_full_tenant_lets_the_others_go_first(lanes: Lanes) -> None:
    """It runs as many jobs as it may; each that ends makes room for the next."""
    await enqueue(lanes, "a", 5, Limits(max_running=2))
    await enqueue(lanes, "b", 5)
    claims = await lanes.claim("w1", 20)
    assert Counter(claim.job_id[0] for claim in claims) == {"a": 2, "b": 5}
    assert await lanes.claim("w2", 20) == []
    first = next(claim for claim in claims if claim.job_id.startswith("a"))
    assert await lanes.release("w1", first)
    [following] = await lanes.claim("w2", 20)
    assert following.job_id.startswith("a")


async def test_a_full_tenants_slot_rings_the_bell(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """Another worker may be idle, and the one that ended the job may be full."""
    await enqueue(lanes, "a", 2, Limits(max_running=1))
    claim = await claim_one(lanes)
    assert await lanes.claim("w2", 1) == []
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.model(MODEL).bell)
        assert await pubsub.get_message(timeout=None)
        await lanes.release("w1", claim)
        assert (await anext(pubsub.listen()))["data"] == b""


async def test_a_job_keeps_its_slot_over_workers(lanes: Lanes) -> None:
    """One that was handed back still runs, as far as its tenant's limit goes."""
    await enqueue(lanes, "a", 2, Limits(max_running=1))
    claim = await claim_one(lanes)
    await lanes.hand_back("w1")
    assert [again.job_id for again in await lanes.claim("w2", 9)] == [claim.job_id]


async def test_jobs_that_wait_for_a_holder_take_slots(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """A prompt ID is no way around the limit: beyond it a job waits in its tenant's lane."""
    prompts = PromptIndex(redis, keys, MODEL)
    await prompts.commit("a", "chat", Commit("j", 1, "w1", (1,), recompute_ms=10_000))
    limits = Limits(max_running=1)
    for job_id in ("a0", "a1"):
        affinity = Affinity("chat", 60)
        await lanes.enqueue(job_id, "a", Priority.NORMAL, FAR_MS, affinity, limits)
    [claim] = await lanes.claim("w1", 9)
    assert (claim.job_id, claim.lane) == ("a0", "worker:w1")
    await lanes.release("w1", claim)
    assert [(c.job_id, c.lane) for c in await lanes.claim("w2", 9)] == [("a1", "normal:a")]


async def test_a_prompt_id_is_no_way_past_the_others(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """Jobs that wait for this worker and those of the tenants' lanes are claimed in turns."""
    prompts = PromptIndex(redis, keys, MODEL)
    await prompts.commit("a", "chat", Commit("j", 1, "w1", (1,), recompute_ms=10_000))
    for number in range(10):
        affinity = Affinity("chat", 60)
        await lanes.enqueue(f"a{number}", "a", Priority.NORMAL, FAR_MS, affinity)
    await enqueue(lanes, "b", 3)
    assert await tenants_served(lanes, 6) == {"a": 3, "b": 3}
    assert await tenants_served(lanes, 7) == {"a": 7}


async def test_few_jobs_wait_for_one_worker(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """The others wait in their tenant's lane, where they count as waiting and take turns."""
    prompts = PromptIndex(redis, keys, MODEL)
    await prompts.commit("a", "chat", Commit("j", 1, "w1", (1,), recompute_ms=10_000))
    limits = Limits(max_queued=5)
    for number in range(70):
        affinity = Affinity("chat", 60)
        await lanes.enqueue(f"a{number}", "a", Priority.NORMAL, FAR_MS, affinity, limits)
    waiting = {depth.lane: depth.waiting for depth in await lanes.depths()}
    assert waiting == {"normal:a": 6, "worker:w1": 64}
    assert (await lanes.admit("a", limits, 100, 1)).verdict is Verdict.TENANT_FULL


async def test_who_comes_after_a_long_silence_passes_nobody(
    lanes: Lanes, redis: Redis, keys: Keys
) -> None:
    """The ring's clock is forgotten when no worker has come for an hour; its order is not."""
    await enqueue(lanes, "a", 50)
    await enqueue(lanes, "c", 50)
    await tenants_served(lanes, 40)
    await redis.delete(f"{keys.model(MODEL).prefix}:clock:normal")
    await enqueue(lanes, "b", 50)
    assert (await tenants_served(lanes, 9))["b"] <= 4


async def test_a_higher_limit_lets_waiting_jobs_go(lanes: Lanes) -> None:
    """The limits of the last job that was submitted are the tenant's."""
    await enqueue(lanes, "a", 3, Limits(max_running=1))
    assert len(await lanes.claim("w1", 9)) == 1
    await lanes.enqueue("more", "a", Priority.NORMAL, FAR_MS, limits=Limits(max_running=3))
    assert len(await lanes.claim("w1", 9)) == 2


async def test_a_priority_goes_first(lanes: Lanes) -> None:
    """Among jobs that came together, whoever's they are."""
    for priority in (Priority.LOW, Priority.HIGH, Priority.NORMAL):
        await enqueue(lanes, priority[0], 2, priority=priority)
    claims = await lanes.claim("w1", 9)
    assert [claim.job_id[0] for claim in claims] == ["h", "h", "n", "n", "l", "l"]


async def test_a_low_job_that_has_waited_goes_before_a_high_one(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stream of urgent jobs can starve the others; without ageing it would."""
    await enqueue(lanes, "l", 1, priority=Priority.LOW)
    await enqueue(lanes, "h", 3, priority=Priority.HIGH)
    assert (await claim_one(lanes)).job_id[0] == "h"
    monkeypatch.setattr(lanes_module, "AGEING_S", 0.0)
    assert (await claim_one(lanes)).job_id[0] == "l"
    assert (await claim_one(lanes)).job_id[0] == "h"


async def test_a_tenants_waiting_jobs_are_bounded(lanes: Lanes) -> None:
    """Those that run do not count, and the others' room is their own."""
    limits = Limits(max_queued=2, max_running=1)
    await enqueue(lanes, "a", 3, limits)
    await claim_one(lanes)
    assert (await lanes.admit("a", limits, 100, 1)).verdict is Verdict.TENANT_FULL
    assert (await lanes.admit("b", limits, 100, 1)).jobs_left == 1
    assert (await lanes.admit("b", limits, 2, 1)).verdict is Verdict.MODEL_FULL


async def test_tokens_are_bounded_by_the_minute(lanes: Lanes, redis: Redis, keys: Keys) -> None:
    """A refused job takes none; what was taken comes back evenly."""
    limits = Limits(tokens_per_minute=600)
    first = await lanes.admit("a", limits, 100, 500)
    assert (first.verdict, first.tokens_left) == (Verdict.OK, 100)
    assert 49 < first.wait_s <= 50
    for _ in range(2):
        refused = await lanes.admit("a", limits, 100, 200)
        assert refused.verdict is Verdict.TOO_FAST
        assert 9 < refused.wait_s <= 10
    bucket = keys.model(MODEL).bucket("a")
    await redis.hincrby(bucket, "at_ms", -10_000)  # type: ignore[misc]
    assert (await lanes.admit("a", limits, 100, 200)).verdict is Verdict.OK
    assert (await lanes.admit("b", limits, 100, 600)).verdict is Verdict.OK
