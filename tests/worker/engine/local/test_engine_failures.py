"""What breaks in a local engine, and whom it harms."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.errors import EngineFailed
from tests.worker.engine.local.engines import (
    PROMPTS,
    Failing,
    Gate,
    Reference,
    between_steps,
    loaded,
    make_spec,
    submit,
)
from tests.worker.engine.recorder import DEADLINE_S, LENGTH
from worker.engine.local.engine import LocalEngine
from worker.engine.local.intake import Intake
from worker.engine.local.run import Run
from worker.engine.protocol import Output, Request

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


@pytest.mark.fault(4)
async def test_a_failing_forward_pass_ends_its_request_alone(
    engine: LocalEngine, reference: Reference
) -> None:
    """Neither an exception of one request nor its half of a step reaches its neighbour."""
    (bad_id,) = reference.encode("<|user|>")
    Failing(engine, RuntimeError("out of memory"), lambda batch: bad_id in batch.ids)
    with capture_logs():
        good = submit(engine, make_spec(), "j:good")
        bad = submit(engine, make_spec("<|user|>"), "j:bad")
        refused = await bad.refused()
    assert (refused.type, refused.detail) == (
        "engine-error",
        "The forward pass failed: out of memory",
    )
    assert await good.ended() == LENGTH
    assert good.ids == reference.complete(PROMPTS[0], 24)
    assert await between_steps(engine, lambda: engine._parts.core.scheduler.is_idle)


@pytest.mark.parametrize(
    ("kind", "method", "request_of"),
    [
        (Intake, "prepare", lambda _intake, request, _order: request),
        (Run, "open", lambda run, _prepared: run.request),
    ],
    ids=["in the pool", "on the loop"],
)
async def test_a_prompt_that_cannot_be_prepared_ends_its_request_alone(
    kind: type[Any],
    method: str,
    request_of: Callable[..., Request],
    engine: LocalEngine,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever breaks before the model, its follower hears of it, the others get their answers."""
    prepare = getattr(kind, method)

    def broken(*args: Any) -> Any:
        if request_of(*args).id == "j:bad":
            raise RuntimeError("a bug of ours")
        return prepare(*args)

    monkeypatch.setattr(kind, method, broken)
    with capture_logs() as logs:
        good = submit(engine, make_spec(), "j:good")
        refused = await submit(engine, make_spec(), "j:bad").refused()
        assert await good.ended() == LENGTH
        later = submit(engine, make_spec(PROMPTS[1]), "j:later")
        assert await later.ended() == LENGTH
    assert (refused.type, refused.detail) == (
        "engine-error",
        "The prompt cannot be prepared: a bug of ours",
    )
    assert good.ids == reference.complete(PROMPTS[0], 24)
    assert later.ids == reference.complete(PROMPTS[1], 24)
    assert [(log["event"], log["request"]) for log in logs] == [("prompt_failed", "j:bad")]
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


@pytest.mark.fault(4)
async def test_a_dead_engine_thread_ends_nobodys_job(engine: LocalEngine) -> None:
    """The worker gets the cause; running, waiting and later requests hear nothing more."""
    Failing(engine, TypeError("a bug of ours"), lambda batch: batch.max_length > 10)
    with capture_logs():
        answers = [submit(engine, make_spec(), f"j:{number}") for number in range(4)]
        with pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
    assert isinstance(caught.value.__cause__, TypeError)
    answers.append(submit(engine, make_spec(), "j:late"))
    assert not any(answer.is_ended for answer in answers)


@pytest.mark.fault(4)
async def test_a_step_that_hangs_ends_the_engine(tiny_model: Path) -> None:
    """Its jobs are another worker's then, so that nothing more is said of them here."""
    async with loaded(tiny_model, watchdog_s=0.5) as engine:
        gate = Gate(engine)
        answer = submit(engine, make_spec())
        with capture_logs(), pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
        assert isinstance(caught.value.__cause__, TimeoutError)
        gate.open()
        num_free = await between_steps(engine, lambda: engine._parts.core.cache.num_available)
        assert num_free
        assert not answer.outputs


async def test_a_broken_sink_fails_the_engine(engine: LocalEngine) -> None:
    """A step that cannot be handed out whole is no silent loss for the others."""
    error = ValueError("broken sink")

    def broken(_output: Output) -> None:
        raise error

    other = submit(engine, make_spec(max_tokens=180), "j:other")
    await other.has_ids(1)
    with capture_logs():
        engine.submit(Request("j:broken", make_spec()), broken)
        with pytest.raises(EngineFailed) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await engine.wait_failed()
    assert caught.value.__cause__ is error
    assert not other.is_ended
