"""A worker's death is a pause: whenever it comes, the answer is the one nobody disturbed."""

import asyncio

import pytest

from common import job_store, scripts
from common.emitted import Emitted, emitted, emitted_choices
from common.events import Tokens
from common.job_store import Append, Outcome
from common.jobs import JobSpec, JobState
from tests.support.jobs import MODEL, STOPPED, append, read, start
from tests.support.servers import Server
from tests.support.waiting import within
from tests.worker.conftest import MakeRig
from tests.worker.deaths import die_holding, hang_at, succeed
from tests.worker.rig import (
    CutEngine,
    Rig,
    answer_to,
    at_rest,
    end_of,
    events_of,
    hold_at,
    ids_of,
    kinds_of,
    submit,
    text_of,
    undisturbed,
    until,
)
from worker.backend import Backend
from worker.engine.fake import FakeEngine
from worker.engine.protocol import Delta

pytestmark = pytest.mark.anyio

PROMPT = "Tell 12 [eos=14]"  # the answer begins with four bytes of one character
MAX_TOKENS = 20
NUM_TOKENS = 15
NUM_JOBS = 50
CHECK = "if job[1] ~= ARGV[2] then return { 'FENCED', next } end\n"


async def test_the_short_answer_has_half_characters() -> None:
    """Some cut of the takeovers below falls inside a character, and one after the last token."""
    answer = await undisturbed(JobSpec(MODEL, MAX_TOKENS, prompt=PROMPT))
    assert len(answer.ids) == NUM_TOKENS
    deltas = [output for output in answer.outputs if isinstance(output, Delta)]
    assert any(delta.ids and not delta.text for delta in deltas[:-1])


@pytest.mark.fault(1, 31)
@pytest.mark.parametrize("cut", range(NUM_TOKENS + 1))
async def test_killed_at_this_token_the_answer_is_whole(
    cut: int, make_rig: MakeRig, backend: Backend
) -> None:
    """Text and IDs equal an undisturbed run, numbers are contiguous, and there is one end."""
    dead = make_rig(engine=CutEngine(cut))
    job_id = await die_holding(dead, backend, prompt=PROMPT, max_tokens=MAX_TOKENS)
    assert len(ids_of(await events_of(backend, job_id))) == cut
    await succeed(make_rig(), dead)
    end = await end_of(backend, job_id)
    answer = await undisturbed(JobSpec(MODEL, MAX_TOKENS, prompt=PROMPT))
    events = await events_of(backend, job_id)
    assert (text_of(events), ids_of(events)) == (answer.text, answer.ids)
    assert (end.kind, end.is_eos, end.attempts) == ("completed", True, 2)
    assert end.usage.completion_tokens == NUM_TOKENS
    await at_rest(backend)


@pytest.mark.fault(1)
@pytest.mark.parametrize("cut", [0, 1, 5, 20, 47])
async def test_killed_at_this_token_every_answer_is_whole(
    cut: int, make_rig: MakeRig, backend: Backend
) -> None:
    """Of several answers each goes on where it was, the prompt is echoed once, logprobs fit."""
    options = {"n": 3, "echo": True, "logprobs": 1}
    dead = make_rig(engine=CutEngine(cut))
    job_id = await die_holding(dead, backend, prompt=PROMPT, max_tokens=MAX_TOKENS, **options)
    await succeed(make_rig(), dead)
    end = await end_of(backend, job_id)
    events = await events_of(backend, job_id)
    for choice, answer in enumerate(emitted_choices(events, 3)):
        own = [e for e in events if isinstance(e, Tokens) and e.choice == choice]
        logprobs = [entry for event in own for entry in event.logprobs]
        assert tuple(entry.id for entry in logprobs) == answer.ids
        assert answer.echo == ("" if choice else PROMPT)
        assert len(answer.ids) == NUM_TOKENS + choice
    single = await undisturbed(JobSpec(MODEL, MAX_TOKENS, prompt=PROMPT))
    assert emitted(events) == Emitted(single.ids, single.text, PROMPT)
    assert [choice.is_eos for choice in end.choices] == [True] * 3
    assert end.usage.completion_tokens == 3 * NUM_TOKENS + 3
    await at_rest(backend)


async def test_what_cannot_be_continued_is_reset(make_rig: MakeRig, backend: Backend) -> None:
    """Tokens that this engine could not have made are discarded, openly; then it begins anew."""
    job_id = await submit(backend, prompt=PROMPT, max_tokens=MAX_TOKENS)
    epoch = await start(backend.store, job_id, "another-version")
    await append(backend.store, job_id, epoch, 2, "never said")
    await make_rig().start()
    end = await end_of(backend, job_id)
    answer = await undisturbed(JobSpec(MODEL, MAX_TOKENS, prompt=PROMPT))
    kinds = await kinds_of(backend, job_id)
    assert kinds == ["accepted", "started", "tokens", "started", "reset", "tokens", "completed"]
    whole = emitted(await events_of(backend, job_id))
    assert (whole.text, whole.ids) == (answer.text, answer.ids)
    assert end.usage.completion_tokens == NUM_TOKENS
    await at_rest(backend)


@pytest.mark.fault(4)
async def test_a_failed_engine_gives_its_jobs_away(make_rig: MakeRig, backend: Backend) -> None:
    """Nobody waits for the lease of a worker that knows that it cannot go on."""
    failing = await make_rig(engine=CutEngine(3)).start()
    job_id = await hold_at(failing, backend, prompt=PROMPT, max_tokens=MAX_TOKENS)
    failing.runner.draining = True
    await failing.runner.hand_over("engine_failed", lost=True)
    await make_rig().start()
    end = await end_of(backend, job_id)
    assert (end.kind, end.attempts) == ("completed", 2)
    assert "retrying" in await kinds_of(backend, job_id)
    assert (await read(backend.store, job_id)).losses == 1


@pytest.mark.fault(1)
async def test_killed_between_finish_and_release_nothing_is_written_twice(
    make_rig: MakeRig, backend: Backend
) -> None:
    """The end is in the log, the entry is still held: the next worker only releases it."""
    dead = make_rig()
    is_finished = hang_at(dead.backend.lanes, "release")
    await dead.start()
    job_id = await submit(backend)
    async with within():
        await is_finished.wait()
    await dead.kill()
    before = await backend.store.log(job_id)
    await succeed(make_rig(), dead)
    await at_rest(backend)
    assert await backend.store.log(job_id) == before
    assert (await end_of(backend, job_id)).attempts == 1


@pytest.mark.fault(1)
async def test_two_workers_in_a_row_may_die(make_rig: MakeRig, backend: Backend) -> None:
    """The third goes on after what both have logged."""
    first = make_rig(engine=CutEngine(4))
    job_id = await die_holding(first, backend, prompt=PROMPT, max_tokens=MAX_TOKENS)
    second = await succeed(make_rig(engine=CutEngine(3)), first)
    await until(lambda: job_id in second.publisher.attempts)
    log = second.publisher.attempts[job_id]
    await until(lambda: log.is_sent and len(log.payloads) > 4 and log._pending.num_ids == 7)
    await second.kill()
    await succeed(make_rig(), second)
    end = await end_of(backend, job_id)
    assert (end.attempts, end.usage.completion_tokens) == (3, NUM_TOKENS)
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    assert (await read(backend.store, job_id)).losses == 2


@pytest.mark.fault(5)
async def test_a_job_that_kills_every_worker_is_given_up(
    make_rig: MakeRig, backend: Backend
) -> None:
    """At the limit it fails with its reason instead of killing one more."""
    job_id = await submit(backend)
    for _ in range(2):
        dead = await make_rig(engine=CutEngine(0)).start()
        await until(lambda rig=dead: job_id in rig.publisher.attempts)  # type: ignore[misc]
        await dead.kill()
        await make_rig().bury(dead.worker_id)
    await make_rig(max_losses=2).start()
    end = await end_of(backend, job_id)
    assert end.error
    assert (end.kind, end.error.type) == ("failed", "worker-lost")
    await at_rest(backend)


async def thawed_zombie(make_rig: MakeRig, backend: Backend) -> tuple[Rig, str, list[Append]]:
    """Return a worker that was frozen with unsent tokens while another one took its job."""
    zombie = await make_rig(engine=CutEngine(2)).start()
    job_id = await hold_at(zombie, backend, prompt=PROMPT, max_tokens=MAX_TOKENS)
    await zombie.stop_tasks()
    log = zombie.publisher.attempts[job_id]
    for n in range(4):
        log.take(Delta((n,), "zombie"))
        log.unsent()
    append = Append(job_id, log.grant.epoch, log.confirmed, log.unsent())
    living = await succeed(make_rig(engine=CutEngine(2)), zombie)
    await until(lambda: job_id in living.publisher.attempts)
    return zombie, job_id, [append]


@pytest.mark.fault(2)
async def test_a_zombie_can_neither_write_nor_release(make_rig: MakeRig, backend: Backend) -> None:
    """Its flush is fenced, its end is fenced, and the entry is not its own any more."""
    zombie, job_id, _ = await thawed_zombie(make_rig, backend)
    log = zombie.publisher.attempts[job_id]
    grant = log.grant
    position = (grant.epoch, (await read(backend.store, job_id)).next)
    await zombie.publisher.flush([log])
    assert job_id not in zombie.publisher.attempts
    finished, _ = await zombie.backend.store.finish(
        job_id, position, STOPPED, grant.snapshot.record.retention_ms
    )
    assert finished is Outcome.FENCED
    assert not await zombie.backend.lanes.release(grant.worker_id, grant.claim)
    assert not await asyncio.to_thread(zombie.heartbeat.renew, zombie.lease._describe())
    assert "zombie" not in text_of(await events_of(backend, job_id))
    record = await read(backend.store, job_id)
    assert (record.state, record.attempts) == (JobState.RUNNING, 2)


@pytest.mark.control(2)
async def test_without_the_epoch_check_a_zombie_would_damage_the_log(
    make_rig: MakeRig, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the same append through a script without the check gets in."""
    zombie, job_id, appends = await thawed_zombie(make_rig, backend)
    script = scripts.Script("append", shared=("clock", "events"))
    assert CHECK in script.text
    script.text = script.text.replace(CHECK, "")
    script.sha = "0" * 40
    monkeypatch.setattr(job_store, "_APPEND", script)
    outcomes = await zombie.backend.store.append(appends[:1])
    assert outcomes[0][0] is Outcome.OK
    assert "zombie" in str(await backend.store.log(job_id))


@pytest.mark.fault(11)
async def test_a_restarted_server_loses_no_job_of_fifty(
    make_rig: MakeRig, own_server: Server, own_backend: Backend
) -> None:
    """Every job ends exactly once with the right text, and nothing is left behind."""
    engine = FakeEngine(MODEL, tokens_per_s=200, capacity=NUM_JOBS)
    rig = await make_rig(url=own_server.url, engine=engine).start(capacity=NUM_JOBS)
    job_ids = [await submit(own_backend, prompt=f"p{n}", max_tokens=300) for n in range(NUM_JOBS)]
    await until(lambda: len(rig.publisher.attempts) == NUM_JOBS)
    logs = list(rig.publisher.attempts.values())
    await until(lambda: all(log.confirmed > 2 for log in logs))
    assert not any(log.end for log in logs)
    await asyncio.to_thread(own_server.restart)
    for job_id in job_ids:
        end = await end_of(own_backend, job_id)
        assert (end.kind, end.usage.completion_tokens) == ("completed", 300)
        answer = await answer_to(own_backend, job_id)
        assert text_of(await events_of(own_backend, job_id)) == answer
    await at_rest(own_backend)
    await until(lambda: not rig.publisher.attempts)
    assert not any(task.done() for task in rig.tasks)
