"""The prompt index: what is stored, which version it is, and who may see it."""

import asyncio

import pytest
from redis.asyncio import Redis

from common.keys import Keys
from common.prompts import Commit, PromptIndex, forget_message, read_forget
from tests.support.jobs import MODEL, TENANT

TTL_S = 600.0
CHAT = "chat/1"


@pytest.fixture
def prompts(redis: Redis, keys: Keys) -> PromptIndex:
    """The index of one model."""
    return PromptIndex(redis, keys, MODEL, TTL_S)


def made_by(job: str, *ids: int, epoch: int = 1, worker: str = "w1") -> Commit:
    """Return what a job leaves behind."""
    return Commit(job, epoch, worker, ids or (1, 2, 3), recompute_ms=40)


async def test_nothing_is_stored_at_first(prompts: PromptIndex) -> None:
    """An unknown ID has no entry, with or without token IDs, and cannot be forgotten."""
    assert await prompts.read(TENANT, CHAT) is None
    assert await prompts.use(TENANT, CHAT) is None
    assert await prompts.forget(TENANT, CHAT) is None


async def test_what_was_committed_can_be_read(prompts: PromptIndex) -> None:
    """All of it, the token IDs on demand."""
    assert await prompts.commit(TENANT, CHAT, made_by("j1", 5, 0, 2**32 - 1)) == 1
    stored = await prompts.read(TENANT, CHAT, with_ids=True)
    assert stored
    assert (stored.version, stored.job, stored.worker) == (1, "j1", "w1")
    assert (stored.ids, stored.length, stored.recompute_ms) == ((5, 0, 2**32 - 1), 3, 40)
    assert stored.updated_ms > 0
    assert 0 < stored.ttl_ms <= TTL_S * 1000
    without = await prompts.read(TENANT, CHAT)
    assert without
    assert (without.ids, without.length) == ((), 3)


async def test_every_job_makes_one_version(prompts: PromptIndex) -> None:
    """A commit whose reply was lost, or that a take-over repeats, counts once."""
    versions = [
        await prompts.commit(TENANT, CHAT, made_by(job)) for job in ("j1", "j1", "j2", "j2", "j3")
    ]
    assert versions == [1, 1, 2, 2, 3]


async def test_commits_at_once_get_different_versions(prompts: PromptIndex) -> None:
    """No version is given to two jobs, however they meet."""
    jobs = [f"j{number}" for number in range(20)]
    commits = [prompts.commit(TENANT, CHAT, made_by(job)) for job in jobs]
    assert sorted(await asyncio.gather(*commits)) == list(range(1, 21))


async def test_a_take_over_replaces_what_its_job_stored(prompts: PromptIndex) -> None:
    """The version stays, the holder is the new one; the fenced worker changes nothing any more."""
    await prompts.commit(TENANT, CHAT, made_by("j1", 1, epoch=7, worker="first"))
    assert await prompts.commit(TENANT, CHAT, made_by("j1", 2, epoch=8, worker="second")) == 1
    assert await prompts.commit(TENANT, CHAT, made_by("j1", 1, epoch=7, worker="first")) == 1
    stored = await prompts.read(TENANT, CHAT, with_ids=True)
    assert stored
    assert (stored.worker, stored.ids) == ("second", (2,))


async def test_a_take_over_does_not_erase_the_turn_after_it(prompts: PromptIndex) -> None:
    """Race: a worker dies between its commit and the end of its job, and another job commits."""
    await prompts.commit(TENANT, CHAT, made_by("j1", 1))
    await prompts.commit(TENANT, CHAT, made_by("j2", 1, 2))
    assert await prompts.commit(TENANT, CHAT, made_by("j1", 1, epoch=9, worker="w2")) == 1
    stored = await prompts.read(TENANT, CHAT, with_ids=True)
    assert stored
    assert (stored.version, stored.job, stored.worker, stored.ids) == (2, "j2", "w1", (1, 2))


async def test_the_last_few_jobs_are_remembered(
    prompts: PromptIndex, redis: Redis, keys: Keys
) -> None:
    """Each with its version, and no more of them than an entry should carry."""
    for number in range(1, 41):
        await prompts.commit(TENANT, CHAT, made_by(f"j{number}"))
    again = [await prompts.commit(TENANT, CHAT, made_by(f"j{n}", epoch=2)) for n in range(24, 41)]
    assert again == list(range(24, 41))
    key = keys.model(MODEL).prompt(TENANT, CHAT)
    earlier = await redis.hget(key, "earlier")  # type: ignore[misc]
    assert earlier == "".join(f"j{n} {n}\n" for n in range(24, 40)).encode()
    assert await prompts.commit(TENANT, CHAT, made_by("j23", epoch=2)) == 41


async def test_tenants_and_models_do_not_meet(
    prompts: PromptIndex, redis: Redis, keys: Keys
) -> None:
    """One name stands for another thing in every scope, also where names have colons."""
    await prompts.commit(TENANT, "a:b", made_by("j1"))
    assert await prompts.read("other", "a:b") is None
    assert await prompts.read(f"{TENANT}:a", "b") is None
    assert await PromptIndex(redis, keys, "another").read(TENANT, "a:b") is None
    assert await prompts.forget("other", "a:b") is None
    assert await prompts.read(TENANT, "a:b")


async def test_forgetting_returns_what_was_stored_once(prompts: PromptIndex) -> None:
    """And the next job begins with version 1."""
    await prompts.commit(TENANT, CHAT, made_by("j1"))
    forgotten = await prompts.forget(TENANT, CHAT)
    assert forgotten is not None
    assert (forgotten.worker, forgotten.ids) == ("w1", made_by("j1").ids)
    assert await prompts.forget(TENANT, CHAT) is None
    assert await prompts.commit(TENANT, CHAT, made_by("j2")) == 1


async def test_use_prolongs_the_life(prompts: PromptIndex, redis: Redis, keys: Keys) -> None:
    """A conversation that goes on is kept; looking at it is no use."""
    await prompts.commit(TENANT, CHAT, made_by("j1"))
    await redis.pexpire(keys.model(MODEL).prompt(TENANT, CHAT), 5000)
    stored = await prompts.read(TENANT, CHAT)
    assert stored
    assert stored.ttl_ms <= 5000
    used = await prompts.use(TENANT, CHAT)
    assert used
    assert used.ids == (1, 2, 3)
    later = await prompts.read(TENANT, CHAT)
    assert later
    assert later.ttl_ms > 5000


def test_a_forget_message_is_told_from_a_job() -> None:
    """The control channel carries bare job IDs too."""
    message = forget_message("a:b", [1, 70_000])
    assert message.startswith("forget:a%3Ab:")
    assert read_forget(message) == ("a:b", (1, 70_000))
    assert read_forget("job_00000000000000000000000000000001") is None
