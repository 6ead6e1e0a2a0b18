"""Whose fault an error is: the vLLM engine without a vLLM."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import EngineFailed
from common.jobs import JobSpec
from tests.support.waiting import within
from tests.worker.engine.recorder import Recorder
from worker.engine.options import EngineOptions
from worker.engine.protocol import Request
from worker.engine.vllm.engine import VllmEngine

pytestmark = pytest.mark.anyio


class Dead(Exception):
    """Stands for vLLM's ``EngineDeadError``."""


class BrokenParts:
    """A vLLM whose every request breaks, in the place of ``VllmParts``."""

    death = Dead

    def __init__(self, error: Exception, *, is_dead: bool = False) -> None:
        self.is_dead = is_dead
        self.intake = self
        self._error = error

    def prepare(self, _request: Request, _order: int) -> Any:
        """Break as a tokeniser or a chat template does."""
        raise self._error

    def shut_down(self) -> None:
        """Nothing runs."""


def engine_on(parts: Any) -> VllmEngine:
    """Return an engine that loaded these parts."""
    engine = VllmEngine(EngineOptions("some/model", Path("/nowhere")))
    engine._loaded = parts
    return engine


async def test_a_broken_template_fails_its_job_alone() -> None:
    """The engine goes on; the job would kill the next workers too."""
    engine = engine_on(BrokenParts(TypeError("can only concatenate str")))
    recorder = Recorder()
    engine.submit(Request("j:1", JobSpec("m", 1, prompt="x")), recorder)
    refusal = await recorder.refused()
    assert (refusal.type, "can only concatenate str" in refusal.detail) == ("engine-error", True)
    assert engine.stats().running == 0
    await engine.close()


@pytest.mark.parametrize(
    "parts",
    [BrokenParts(Dead()), BrokenParts(ExceptionGroup("", [Dead()])),
     BrokenParts(TypeError(), is_dead=True)],
)  # fmt: skip
async def test_a_dead_vllm_is_no_jobs_fault(parts: BrokenParts) -> None:
    """Another worker does the job."""
    engine = engine_on(parts)
    recorder = Recorder()
    engine.submit(Request("j:1", JobSpec("m", 1, prompt="x")), recorder)
    async with within():
        with pytest.raises(EngineFailed):
            await engine.wait_failed()
    assert recorder.outputs == []
    await engine.close()
