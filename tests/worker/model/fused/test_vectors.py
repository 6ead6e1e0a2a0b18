"""What is computed over whole vectors, beside the same thing in NumPy."""

from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from worker.model.fused.emitter import GROUP
from worker.model.fused.reductions import greatest_of, sum_of
from worker.model.fused.rounding import round_group

COUNT = 64
NAN, INF = float("nan"), float("inf")

_greatest_of_some, _sum_of_some = greatest_of(COUNT), sum_of(COUNT)


@numba.njit
def _greatest(place: int, other: Any) -> Any:
    return _greatest_of_some(place, other)


@numba.njit
def _sum(place: int) -> Any:
    return _sum_of_some(place)


@numba.njit
def _round(source: int, target: int) -> Any:
    return round_group(source, target)


def _numbers(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_the_greatest_is_found_wherever_it_is() -> None:
    """In every lane of every vector, and beside them; among negative numbers too."""
    numbers = -np.abs(_numbers(COUNT)) - 1
    for place in range(COUNT):
        some = numbers.copy()
        some[place] = -0.5
        assert _greatest(some.ctypes.data, np.float32(-9)) == np.float32(-0.5)
    assert _greatest(numbers.ctypes.data, np.float32(0.25)) == np.float32(0.25)


@pytest.mark.parametrize("place", [0, COUNT - 1, None])
def test_nan_is_greater_than_infinity(place: int | None) -> None:
    """A broken score must not look like one that is only small."""
    numbers = np.full(COUNT, INF, np.float32)
    if place is not None:
        numbers[place] = NAN
    other = np.float32(NAN if place is None else 0)
    assert np.isnan(_greatest(numbers.ctypes.data, other))


def test_the_sum_is_the_sum() -> None:
    """Up to the order in which it is added."""
    numbers = _numbers(COUNT)
    assert _sum(numbers.ctypes.data) == pytest.approx(float(numbers.astype(np.float64).sum()), 1e-5)


@pytest.mark.parametrize("factor", [1.0, 1e-20, 1e20])
def test_a_group_is_rounded_to_its_scale(factor: float) -> None:
    """The greatest becomes 127, each is off by half a step at most, and the sum is of the bytes."""
    numbers = (_numbers(GROUP) * np.float32(factor)).astype(np.float32)
    out = np.zeros(GROUP, np.int8)
    scale, total = _round(numbers.ctypes.data, out.ctypes.data)
    assert np.abs(out).max() == 127
    assert np.abs(out * np.float64(scale) - numbers).max() <= 0.5001 * scale
    assert total == out.astype(int).sum()


def test_a_group_of_zeros_stays_zero() -> None:
    """There is no scale to divide by."""
    out = np.ones(GROUP, np.int8)
    zeros = np.zeros(GROUP, np.float32)
    assert _round(zeros.ctypes.data, out.ctypes.data) == (0.0, 0)
    assert not out.any()


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_broken_number_breaks_the_scale(broken: float) -> None:
    """So that the logits are not finite, and the job is told."""
    numbers = _numbers(GROUP)
    numbers[5] = broken
    out = np.zeros(GROUP, np.int8)
    scale, _ = _round(numbers.ctypes.data, out.ctypes.data)
    assert not np.isfinite(scale)
