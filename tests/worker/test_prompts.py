"""Prompt IDs in a worker: what a job builds on, what it leaves behind, and who gets the next."""

from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from common.events import Completed
from common.job_store import Append, Outcome
from common.jobs import JobSpec
from common.keys import Keys
from common.prompts import Commit, PromptIndex, StoredPrompt
from common.token_ids import pack_ids
from tests.support.jobs import MODEL, TENANT, read
from tests.support.waiting import eventually, within
from tests.worker.conftest import MakeRig
from tests.worker.deaths import die_holding, hang_at, succeed
from tests.worker.rig import (
    CutEngine,
    at_rest,
    end_of,
    events_of,
    has_end,
    ids_of,
    kinds_of,
    lose_reply,
    submit,
    text_of,
    undisturbed,
    until,
)
from worker.backend import Backend
from worker.engine.fake import FakeEngine
from worker.engine.protocol import EngineStats

pytestmark = pytest.mark.anyio

CHAT = "chat/1"
FIRST = "Tell me of water [eos=9]"
ANSWER_TOKENS = 10


class FastEngine(FakeEngine):
    """A fake engine that knows what its prefill costs: an hour for a few tokens."""

    def __init__(self) -> None:
        super().__init__(MODEL, tokens_per_s=0, capacity=64)

    def stats(self) -> EngineStats:
        """Return a load with a prefill rate."""
        return EngineStats(prefill_tokens_per_s=0.01)


async def stored(backend: Backend, prompt_id: str = CHAT) -> StoredPrompt:
    """Return what is stored under an ID that must be there."""
    found = await backend.prompts.read(TENANT, prompt_id, with_ids=True)
    assert found
    return found


async def run(backend: Backend, **spec: Any) -> Completed:
    """Submit a job of the chat and return its end, which must be a good one."""
    fields: dict[str, Any] = {"prompt_id": CHAT, "max_tokens": 20} | spec
    job_id = await submit(backend, **fields)
    end = await end_of(backend, job_id)
    assert isinstance(end, Completed), end
    return end


async def test_a_completed_job_leaves_its_sequence(make_rig: MakeRig, backend: Backend) -> None:
    """Prompt and answer, by the worker that made them, before the end is in the log."""
    rig = await make_rig().start()
    job_id = await submit(backend, prompt=FIRST, prompt_id=CHAT, max_tokens=20)
    end = await end_of(backend, job_id)
    assert isinstance(end, Completed)
    kept = await stored(backend)
    assert kept.ids == (*FIRST.encode(), *ids_of(await events_of(backend, job_id)))
    assert (kept.worker, kept.job) == (rig.worker_id, job_id)
    assert kept.version == end.prompt_version == 1
    assert kept.recompute_ms == 0  # the fake engine does not know
    await at_rest(backend)


async def test_without_a_prompt_id_nothing_is_left(
    make_rig: MakeRig, backend: Backend, redis: Redis, keys: Keys
) -> None:
    """And the end has no version."""
    await make_rig().start()
    end = await run(backend, prompt=FIRST, prompt_id=None)
    assert end.prompt_version == 0
    found = [key async for key in redis.scan_iter(f"{keys.model(MODEL).prefix}:prompt:*")]
    assert found == []


async def test_a_cancelled_job_leaves_what_was_there(make_rig: MakeRig, backend: Backend) -> None:
    """Half an answer is no version."""
    await make_rig(engine=FakeEngine(MODEL, tokens_per_s=1, capacity=1)).start()
    job_id = await submit(backend, prompt=FIRST, prompt_id=CHAT)
    await eventually(lambda: _has_tokens(backend, job_id))
    await backend.store.cancel(job_id)
    assert (await end_of(backend, job_id)).kind == "cancelled"
    assert await backend.prompts.read(TENANT, CHAT) is None


async def _has_tokens(backend: Backend, job_id: str) -> bool:
    return bool(ids_of(await events_of(backend, job_id)))


async def test_append_builds_on_what_is_stored(make_rig: MakeRig, backend: Backend) -> None:
    """The new job's prompt is the stored sequence and the new text."""
    await make_rig().start()
    await run(backend, prompt=FIRST)
    base = (await stored(backend)).ids
    more = " And then? [eos=4]"
    job_id = await submit(backend, prompt=None, append=more, prompt_id=CHAT, max_tokens=20)
    end = await end_of(backend, job_id)
    spec = JobSpec(MODEL, 20, append=more)
    assert text_of(await events_of(backend, job_id)) == (await undisturbed(spec, base)).text
    kept = await stored(backend)
    assert end.prompt_version == kept.version == 2
    assert len(kept.ids) > len(base) + len(more)


async def test_continue_goes_on_where_it_stopped(make_rig: MakeRig, backend: Backend) -> None:
    """A job with neither prompt nor append has the stored sequence as its prompt."""
    await make_rig().start()
    first = await run(backend, prompt="Tell me of water", max_tokens=5)
    assert not first.is_eos
    base = (await stored(backend)).ids
    end = await run(backend, prompt=None, max_tokens=5)
    assert end.usage.prompt_tokens == len(base)
    kept = await stored(backend)
    assert (kept.version, len(kept.ids)) == (2, len(base) + 5)


async def test_a_full_prompt_replaces_what_is_stored(make_rig: MakeRig, backend: Backend) -> None:
    """What the engine can use of the old one is its own affair: no base is pinned."""
    await make_rig().start()
    await run(backend, prompt=FIRST)
    job_id = await submit(backend, prompt="Anew [eos=2]", prompt_id=CHAT)
    await end_of(backend, job_id)
    kept = await stored(backend)
    assert kept.version == 2
    assert bytes(kept.ids[:4]) == b"Anew"
    assert (await read(backend.store, job_id)).base == b""


async def test_whoever_reads_completed_can_continue(make_rig: MakeRig, backend: Backend) -> None:
    """A chain of turns, each submitted the moment the one before has ended, misses no version."""
    await make_rig().start()
    ends = [await run(backend, prompt=FIRST)]
    ends += [await run(backend, prompt=None, append=f" {turn} [eos=3]") for turn in range(5)]
    assert [end.prompt_version for end in ends] == [1, 2, 3, 4, 5, 6]


async def test_a_take_over_builds_on_the_pinned_base(make_rig: MakeRig, backend: Backend) -> None:
    """Another job committed in between, and the answer goes on as it began."""
    await commit(backend.prompts, "job-before", FIRST.encode())
    dead = make_rig(engine=CutEngine(4))
    more: dict[str, Any] = {"append": " And then? [eos=12]", "max_tokens": 20}
    job_id = await die_holding(dead, backend, prompt=None, prompt_id=CHAT, **more)
    assert (await read(backend.store, job_id)).base == pack_ids(tuple(FIRST.encode()))
    await commit(backend.prompts, "job-between", b"Something else [eos=1]")
    living = await succeed(make_rig(), dead)
    end = await end_of(backend, job_id)
    answer = await undisturbed(JobSpec(MODEL, **more), tuple(FIRST.encode()))
    events = await events_of(backend, job_id)
    assert (text_of(events), ids_of(events)) == (answer.text, answer.ids)
    assert (end.kind, end.attempts, end.prompt_version) == ("completed", 2, 3)
    assert (await stored(backend)).worker == living.worker_id
    await at_rest(backend)


async def test_a_take_over_needs_no_index_any_more(make_rig: MakeRig, backend: Backend) -> None:
    """Forgetting a prompt ID harms no job that has started."""
    await commit(backend.prompts, "job-before", FIRST.encode())
    dead = make_rig(engine=CutEngine(4))
    job_id = await die_holding(dead, backend, prompt=None, append=" [eos=8]", prompt_id=CHAT)
    await backend.prompts.forget(TENANT, CHAT)
    await succeed(make_rig(), dead)
    end = await end_of(backend, job_id)
    assert (end.kind, end.prompt_version) == ("completed", 1)


async def test_what_was_forgotten_before_the_start_fails(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The job says so, and its lane is left clean."""
    job_id = await submit(backend, prompt=None, prompt_id=CHAT)
    await make_rig().start()
    end = await end_of(backend, job_id)
    assert end.error
    assert (end.kind, end.error.type) == ("failed", "prompt-not-found")
    assert await kinds_of(backend, job_id) == ["accepted", "failed"]
    await at_rest(backend)


@pytest.mark.parametrize("prompt", [None, FIRST], ids=["continue", "full"])
@pytest.mark.parametrize(("wanted", "kind"), [(1, "failed"), (2, "completed")])
async def test_if_version_is_checked_at_the_start(
    prompt: str | None, wanted: int, kind: str, make_rig: MakeRig, backend: Backend
) -> None:
    """Another job may have committed since the submit: the client hears of it, nothing is lost."""
    for job in ("job-1", "job-2"):
        await commit(backend.prompts, job, FIRST.encode())
    job_id = await submit(backend, prompt=prompt, prompt_id=CHAT, if_version=wanted)
    await make_rig().start()
    end = await end_of(backend, job_id)
    assert end.kind == kind
    if kind == "failed":
        assert end.error
        assert end.error.type == "prompt-version-conflict"
        assert "version 2" in end.error.detail
        assert (await stored(backend)).version == 2


async def test_a_take_over_does_not_check_the_version_again(
    make_rig: MakeRig, backend: Backend
) -> None:
    """What was true at the first start counts."""
    await commit(backend.prompts, "job-1", FIRST.encode())
    dead = make_rig(engine=CutEngine(2))
    job_id = await die_holding(dead, backend, prompt=FIRST, prompt_id=CHAT, if_version=1)
    await commit(backend.prompts, "job-2", FIRST.encode())
    await succeed(make_rig(), dead)
    assert (await end_of(backend, job_id)).kind == "completed"


@pytest.mark.parametrize("lost", ["commit", "end"])
async def test_a_lost_reply_makes_no_second_version(
    lost: str, make_rig: MakeRig, backend: Backend
) -> None:
    """The end says the version that is stored."""
    rig = make_rig()
    if lost == "commit":
        replies = lose_reply(rig.backend.prompts, "commit")
    else:
        replies = lose_reply(rig.backend.store, "append", when=has_end)
    await rig.start()
    end = await run(backend, prompt=FIRST)
    assert len(replies) == 1
    assert end.prompt_version == (await stored(backend)).version == 1
    await at_rest(backend)


async def test_killed_between_commit_and_end_there_is_one_version(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The next worker commits the same job again, as the holder."""
    dead = make_rig()
    is_committed = hang_at(dead.backend.store, "append", has_end)
    await dead.start()
    job_id = await submit(backend, prompt=FIRST, prompt_id=CHAT, max_tokens=20)
    async with within():
        await is_committed.wait()
    await dead.kill()
    assert (await stored(backend)).version == 1
    living = await succeed(make_rig(), dead)
    end = await end_of(backend, job_id)
    kept = await stored(backend)
    assert (end.prompt_version, kept.version, kept.worker) == (1, 1, living.worker_id)


async def test_what_a_server_lost_is_stored_again(make_rig: MakeRig, backend: Backend) -> None:
    """A log that lost its tail may have lost the sequence too: both are sent again."""
    rig = make_rig()
    append = rig.backend.store.append

    async def lose(appends: Sequence[Append]) -> list[tuple[Outcome, int]]:
        if not has_end(appends):
            return await append(appends)
        rig.backend.store.append = append  # type: ignore[method-assign]
        assert await backend.prompts.forget(TENANT, CHAT)
        return [(Outcome.GAP, 1)]

    rig.backend.store.append = lose  # type: ignore[method-assign]
    await rig.start()
    end = await run(backend, prompt=FIRST)
    assert end.prompt_version == (await stored(backend)).version == 1


async def test_tenants_do_not_build_on_each_other(make_rig: MakeRig, backend: Backend) -> None:
    """Another tenant's ID of the same name is no base."""
    other = Commit("job-1", 1, "w1", (1, 2, 3))
    await backend.prompts.commit("another", CHAT, other)
    job_id = await submit(backend, prompt=None, prompt_id=CHAT)
    await make_rig().start()
    end = await end_of(backend, job_id)
    assert end.error
    assert end.error.type == "prompt-not-found"


async def test_the_holder_gets_the_next_job(make_rig: MakeRig, backend: Backend) -> None:
    """Turn after turn goes to the worker of the first, though another one is idle."""
    rigs = [await make_rig(engine=FastEngine()).start() for _ in range(2)]
    first = await run(backend, prompt=FIRST)
    assert (await stored(backend)).recompute_ms > 0
    ends = [await run(backend, prompt=None, append=f" {turn} [eos=2]") for turn in range(6)]
    assert {end.worker for end in ends} == {first.worker}
    assert first.worker in {rig.worker_id for rig in rigs}


async def test_a_dead_holders_next_job_goes_elsewhere(make_rig: MakeRig, backend: Backend) -> None:
    """With the patience of an hour left, the answer comes at once, from the token IDs in Redis."""
    dead = await make_rig(engine=FastEngine()).start()
    await run(backend, prompt=FIRST)
    await dead.kill()
    job_id = await submit(backend, prompt=None, append=" More [eos=2]", prompt_id=CHAT)
    [depth] = await backend.lanes.depths()
    assert depth.lane == f"worker:{dead.worker_id}"
    living = await make_rig(engine=FastEngine()).start()
    await living.expire(dead.worker_id)
    end = await end_of(backend, job_id)
    assert (end.kind, end.worker, end.prompt_version) == ("completed", living.worker_id, 2)
    await at_rest(backend)


async def test_a_draining_holders_next_job_goes_elsewhere(
    make_rig: MakeRig, backend: Backend
) -> None:
    """With the patience of an hour left, and while the holder lives."""
    holder = await make_rig(engine=FastEngine()).start()
    await run(backend, prompt=FIRST)
    holder.runner.draining = True  # it claims no more
    job_id = await submit(backend, prompt=None, append=" More [eos=2]", prompt_id=CHAT)
    [depth] = await backend.lanes.depths()
    assert depth.lane == f"worker:{holder.worker_id}"
    other = await make_rig(engine=FastEngine()).start()
    await holder.drain(60)
    assert (await end_of(backend, job_id)).worker == other.worker_id
    await at_rest(backend)


async def test_a_full_holders_next_job_is_stolen_when_its_patience_ends(
    make_rig: MakeRig, backend: Backend, redis: Redis
) -> None:
    """Not before: the idle worker looks again and again, and leaves it."""
    holder = await make_rig(engine=FastEngine()).start()
    await run(backend, prompt=FIRST)
    holder.runner.draining = True  # it claims no more, and lives
    other = await make_rig(engine=FastEngine()).start()
    job_id = await submit(backend, prompt=None, append=" More [eos=2]", prompt_id=CHAT)
    neighbour = await submit(backend)
    await end_of(backend, neighbour)
    assert not (await read(backend.store, job_id)).attempts
    affinity = backend.keys.model(MODEL).affinity
    await redis.zadd(affinity, {holder.worker_id: 1}, xx=True)
    assert (await end_of(backend, job_id)).worker == other.worker_id
    await until(lambda: other.runner.num_held == 0)


async def commit(prompts: PromptIndex, job: str, text: bytes) -> int:
    """Store a text under the chat's ID as another worker's job does."""
    return await prompts.commit(TENANT, CHAT, Commit(job, 1, "another-worker", tuple(text)))
