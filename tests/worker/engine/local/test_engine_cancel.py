"""A local engine's requests that are cancelled, and its close."""

import asyncio
from pathlib import Path

import pytest

from tests.worker.engine.local.engines import (
    PROMPTS,
    WILD,
    Gate,
    between_steps,
    is_prepared,
    loaded,
    make_spec,
    submit,
)
from tests.worker.engine.recorder import CANCELLED
from worker.engine.local.engine import LocalEngine

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


@pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding"])
async def test_cancel_frees_the_blocks_within_a_step(tiny_model: Path, state: str) -> None:
    """Wherever the request is, after the step that is under way nothing is held."""
    async with loaded(tiny_model, capacity=1, step_tokens=16) as engine:
        gate = Gate(engine)
        other = submit(engine, make_spec(max_tokens=100), "j:other")
        await gate.entered()
        if state != "waiting":
            engine.cancel("j:other")
        mine = submit(engine, make_spec(PROMPTS[2], 100, ignore_eos=True), "j:mine")
        await is_prepared(engine, "j:mine")
        if state != "waiting":
            gate.open(3 if state == "prefilling" else 7)
            await gate.entered()
        if state == "decoding":
            await mine.has_ids(1)
        engine.cancel("j:mine")
        engine.cancel("j:other")
        gate.open(1)
        assert await between_steps(engine, lambda: engine._parts.core.cache.manager.num_used) == 0
        assert await mine.ended() == CANCELLED
        assert await other.ended() == CANCELLED
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)
        gate.open()


async def test_cancel_ends_running_waiting_and_fresh_requests(engine: LocalEngine) -> None:
    """Also twice, and also one that nobody knows."""
    answers = [submit(engine, make_spec(max_tokens=180), f"j:{number}") for number in range(3)]
    await answers[0].has_ids(2)
    fresh = submit(engine, make_spec(), "j:fresh")
    for request_id in ("j:0", "j:1", "j:2", "j:fresh", "j:unknown", "j:0"):
        engine.cancel(request_id)
    for answer in (*answers, fresh):
        assert await answer.ended() == CANCELLED
    assert len(answers[0].ids) < 180
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


async def test_a_cancelled_job_with_several_answers_leaves_nothing(engine: LocalEngine) -> None:
    """All of its sequences are forgotten."""
    answer = submit(engine, make_spec(max_tokens=180, n=3, sampling=WILD))
    await answer.has_ids(4)
    engine.cancel("j:1")
    end = await answer.ended()
    assert [choice.finish_reason for choice in end.choices] == ["cancelled"] * 3
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


async def test_after_close_nothing_is_delivered(tiny_model: Path) -> None:
    """Close ends the thread; running and cancelled requests hear no more."""
    async with loaded(tiny_model) as engine:
        answer = submit(engine, make_spec(max_tokens=200))
        other = submit(engine, make_spec(), "j:2")
        await answer.has_ids(1)
        engine.cancel("j:2")
        outputs = [len(answer.outputs), len(other.outputs)]
    await asyncio.sleep(0)
    assert [len(answer.outputs), len(other.outputs)] == outputs
    assert engine._ended is not None
    assert engine._ended.done()
