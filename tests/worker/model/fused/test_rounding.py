"""From floats to bytes, beside the same thing in NumPy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.model.fused.emitter import GROUP
from worker.model.fused.jit import inline
from worker.model.fused.rounding import round_group


@inline
def _round(source: int, target: int) -> Any:
    return round_group(source, target)


def _numbers() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=GROUP).astype(np.float32)


@pytest.mark.parametrize("factor", [1.0, 1e-20, 1e20])
def test_a_group_is_rounded_to_its_scale(factor: float) -> None:
    """The greatest becomes 127, each is off by half a step at most, and the sum is of the bytes."""
    numbers = (_numbers() * np.float32(factor)).astype(np.float32)
    out = np.zeros(GROUP, np.int8)
    scale, total = _round(numbers.ctypes.data, out.ctypes.data)
    assert np.abs(out).max() == 127
    assert np.abs(out * np.float64(scale) - numbers).max() <= 0.5001 * scale
    assert total == out.astype(int).sum()


@pytest.mark.parametrize("largest", [0.0, 0.9e-30])
def test_a_group_of_almost_nothing_becomes_zeros(largest: float) -> None:
    """127 divided by its scale would be infinite."""
    out = np.ones(GROUP, np.int8)
    numbers = np.full(GROUP, largest, np.float32)
    scale, total = _round(numbers.ctypes.data, out.ctypes.data)
    assert (scale, total) == (pytest.approx(largest / 127), 0)
    assert not out.any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_number_breaks_the_scale(broken: float) -> None:
    """So that the logits are not finite, and the job is told."""
    numbers = _numbers()
    numbers[5] = broken
    out = np.zeros(GROUP, np.int8)
    scale, _ = _round(numbers.ctypes.data, out.ctypes.data)
    assert not np.isfinite(scale)
