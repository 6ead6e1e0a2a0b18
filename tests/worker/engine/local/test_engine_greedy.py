"""Greedy answers of small random models against ``generate``, in every way to come to them."""

from pathlib import Path

import pytest

from tests.worker.engine.local.engines import BLOCK_BYTES, reference_of, saved
from tests.worker.engine.local.tiny import ARCHITECTURES
from tests.worker.engine.local.ways import WAYS, Subject, Way, offloaded
from tests.worker.model.fused.models import KERNELS

pytestmark = pytest.mark.anyio
_COMPILED = ("llama", "qwen2", "qwen3", "mistral")


def _subject(models: Path, architecture: str, cache_dir: Path) -> Subject:
    directory = saved(models, architecture)
    return Subject(
        directory,
        reference_of(directory),
        block_bytes=2 * BLOCK_BYTES if architecture == "gpt2" else BLOCK_BYTES,
        options={"cache_dir": cache_dir},
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.usefixtures("generic_path")
async def test_greedy_answers_equal_generate(
    models: Path, tmp_path: Path, architecture: str, way: Way
) -> None:
    """IDs and text are those of transformers, in torch's operators."""
    await way(_subject(models, architecture, tmp_path))


@pytest.mark.parametrize("architecture", _COMPILED)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.usefixtures("compiled_path")
@pytest.mark.timeout(300)  # the first time the path is compiled
async def test_compiled_answers_equal_generate(models: Path, architecture: str, way: Way) -> None:
    """The path that users of a CPU get says the same."""
    await way(_subject(models, architecture, KERNELS.parent))


@pytest.mark.usefixtures("generic_path")
async def test_blocks_may_go_to_the_disk(models: Path, tmp_path: Path) -> None:
    """Without host memory they come back from there, or from the queue of what is to be written."""
    await offloaded(_subject(models, "llama", tmp_path), kv_disk_bytes=1 << 22)
