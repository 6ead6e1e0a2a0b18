"""How many blocks the KV cache gets."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import StartupFailed
from worker.engine.options import EngineOptions
from worker.kv.pool import KvShape
from worker.model.loading import LoadedModel
from worker.model.memory import num_blocks

SHAPE = KvShape(num_layers=2, num_heads=2, head_dim=8, block_tokens=16, dtype=torch.float32)
MODEL = LoadedModel(
    "tiny", None, None, torch.device("cpu"), torch.float32, context_len=250, eos_ids=frozenset()
)


def _number(**options: Any) -> int:
    return num_blocks(SHAPE, MODEL, EngineOptions("tiny", Path("unused"), **options))


def test_no_more_than_all_sequences_could_fill() -> None:
    """A full context takes whole blocks."""
    assert _number(capacity=3) == 3 * 16
    assert _number(capacity=3, kv_bytes=1 << 40) == 3 * 16


def test_no_more_than_was_allowed() -> None:
    """What does not fill a block is left."""
    assert _number(step_tokens=64, kv_bytes=10 * SHAPE.block_bytes - 1) == 9


def test_less_than_a_step_is_no_use() -> None:
    """The line says what a token costs."""
    with pytest.raises(StartupFailed, match=f"{SHAPE.token_bytes} bytes per token"):
        _number(step_tokens=512, kv_bytes=10 * SHAPE.block_bytes)
    assert _number(step_tokens=512, capacity=1, kv_bytes=16 * SHAPE.block_bytes) == 16
