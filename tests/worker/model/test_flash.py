"""The flash path without a GPU: it asks of torch's kernel what the kernel can do, and rightly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.model import flash_kernel
from tests.worker.model.fused.models import Part, make_batch
from worker.model import flash
from worker.model.attention import GatheredAttention, Scoring, UnsupportedAttention

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other

BLOCK_TOKENS = flash.BLOCK_TOKENS
NUM_BLOCKS = 6
DIM = 16
PARTS: dict[str, list[Part]] = {
    "decodes": [
        Part([1] * 300, 299, 300, [3, 1]),
        Part([1] * 7, 6, 7, [0]),
        Part([1] * 512, 511, 512, [5, 2]),
    ],
    "one decode": [Part([1] * 257, 256, 257, [4, 5])],
    "prefills": [Part([1] * 20, 0, 20, [2]), Part([1] * 270, 250, 270, [1, 4])],
    "mixed": [Part([1] * 9, 8, 9, [5]), Part([1] * 300, 290, 300, [0, 3])],
}


@pytest.fixture(autouse=True)
def _has_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "varlen_attn_out", flash_kernel.varlen_attn_out)
    monkeypatch.setattr(flash, "varlen_attn", flash_kernel.varlen_attn)


def _random(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size))).bfloat16()


@pytest.mark.parametrize("case", PARTS)
@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("scoring", [Scoring(None), Scoring(0.5, window=5), Scoring(0.1, 400)])
def test_it_computes_what_the_gathered_attention_does(
    case: str, num_heads: int, scoring: Scoring
) -> None:
    """With as many key-value heads and with fewer, over scattered pages with NaN behind the end."""
    batch = make_batch(PARTS[case], BLOCK_TOKENS)
    pool = _random(NUM_BLOCKS, 3, 2, BLOCK_TOKENS, 2, DIM)
    for part in PARTS[case]:
        pool[part.table[-1], :, :, (part.end - 1) % BLOCK_TOKENS + 1 :] = torch.nan
    keys, values = pool[:, 1, 0], pool[:, 1, 1]
    query = _random(len(batch.ids), num_heads, DIM)
    expected = GatheredAttention(batch)(query, keys, values, scoring)
    for make in (flash.FlashAttention, flash.GroupedFlashAttention):
        found = make(batch)(query, keys, values, scoring)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("case", "num_heads", "scoring", "is_grouped"),
    [
        ("decodes", 6, Scoring(0.5), True),
        ("decodes", 2, Scoring(0.5), False),  # nobody shares keys
        ("decodes", 6, Scoring(0.5, window=5), False),
        ("mixed", 6, Scoring(0.5), False),
    ],
)
def test_heads_read_shared_keys_once(
    case: str, num_heads: int, scoring: Scoring, is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all decode, without a window: the kernel does it only in an output of its own."""
    calls: list[tuple[int, int]] = []

    def note(*args: Any, window_size: tuple[int, int] = (-1, -1), **options: Any) -> Tensor:
        calls.append(window_size)
        return flash_kernel.varlen_attn(*args, window_size=window_size, **options)

    monkeypatch.setattr(flash, "varlen_attn", note)
    batch = make_batch(PARTS[case], BLOCK_TOKENS)
    pool = _random(NUM_BLOCKS, 2, BLOCK_TOKENS, 2, DIM)
    query = _random(len(batch.ids), num_heads, DIM)
    flash.GroupedFlashAttention(batch)(query, pool[:, 0], pool[:, 1], scoring)
    assert calls == [(-1, -1)] * is_grouped


def test_a_soft_cap_is_refused() -> None:
    """The kernel in torch has none, and would leave it out."""
    batch = make_batch(PARTS["mixed"], BLOCK_TOKENS)
    attention: Callable[..., Tensor] = flash.FlashAttention(batch)
    with pytest.raises(UnsupportedAttention, match="soft cap"):
        attention(_random(11, 2, DIM), None, None, Scoring(None, softcap=30.0))


def test_no_other_device_has_the_kernel() -> None:
    """Nor are there float32 numbers in it."""
    gpu = torch.device("cuda")
    assert flash.supports(gpu, torch.bfloat16)
    assert not flash.supports(gpu, torch.float32)
    assert not flash.supports(torch.device("cpu"), torch.bfloat16)
