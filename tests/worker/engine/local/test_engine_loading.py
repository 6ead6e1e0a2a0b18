"""A local engine's start: what it says, and what stops it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.errors import StartupFailed
from tests.worker.engine.local.engines import BLOCK_BYTES, saved
from tests.worker.engine.local.tiny import CONTEXT_LEN, UNSUPPORTED
from worker.engine.local.engine import LocalEngine
from worker.engine.options import EngineOptions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("generic_path")]


async def test_loading_reports_progress_and_describes_the_model(tiny_model: Path) -> None:
    """The name is the directory's, the type float32 on a CPU."""
    stages: list[tuple[str, float]] = []
    engine = LocalEngine(
        EngineOptions(str(tiny_model), tiny_model, capacity=3, device="cpu", threads=1)
    )
    info = await engine.load(lambda what, done: stages.append((what, done)))
    assert (info.model, info.device, info.dtype) == ("llama", "cpu", "float32")
    assert (info.context_len, info.capacity) == (CONTEXT_LEN, 3)
    names = [what for what, _ in stages]
    assert names[:4] == ["importing", "loading", "loading", "loading"]
    assert stages[3] == ("loading", 1.0)
    kv = engine.stats().kv
    assert kv is not None
    assert (kv.blocks, kv.block_tokens, kv.blocks_used) == (48, 16, 0)
    await engine.close()


async def test_a_cache_that_is_no_use_fails_the_start(tiny_model: Path) -> None:
    """The line says what to give."""
    engine = LocalEngine(
        EngineOptions(str(tiny_model), tiny_model, device="cpu", threads=1, kv_bytes=BLOCK_BYTES)
    )
    with pytest.raises(StartupFailed, match="kv_bytes"):
        await engine.load(lambda _what, _done: None)
    await engine.close()


@pytest.mark.parametrize("architecture", UNSUPPORTED)
async def test_a_model_that_cannot_be_paged_fails_the_start(
    models: Path, architecture: str
) -> None:
    """Rather than that it says something else than it would."""
    directory = saved(models, architecture)
    engine = LocalEngine(EngineOptions(str(directory), directory, device="cpu", threads=1))
    with capture_logs(), pytest.raises(StartupFailed) as caught:
        await engine.load(lambda _what, _done: None)
    assert "\n" not in str(caught.value)
    assert architecture in str(caught.value)
    await engine.close()


async def test_a_broken_model_fails_the_start_in_one_line(tmp_path: Path) -> None:
    """What transformers says in a traceback the user gets in a line."""
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    engine = LocalEngine(EngineOptions(str(tmp_path), tmp_path))
    with pytest.raises(StartupFailed) as caught:
        await engine.load(lambda _what, _done: None)
    assert "\n" not in str(caught.value)
    await engine.close()
