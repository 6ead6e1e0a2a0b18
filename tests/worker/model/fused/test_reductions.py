"""Sums and maxima of vectors, beside the same thing in NumPy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.model.fused.jit import inline
from worker.model.fused.reductions import greatest_of, sum_of

COUNT = 64
NAN, INF = float("nan"), float("inf")

_greatest_of_some, _sum_of_some = greatest_of(COUNT), sum_of(COUNT)


@inline
def _greatest(place: int, other: Any) -> Any:
    return _greatest_of_some(place, other)


@inline
def _sum(place: int) -> Any:
    return _sum_of_some(place)


def _numbers() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=COUNT).astype(np.float32)


def test_the_greatest_is_found_wherever_it_is() -> None:
    """In every lane of every vector, and beside them; among negative numbers too."""
    numbers = -np.abs(_numbers()) - 1
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


def test_the_nan_that_the_processor_makes_is_in_the_sum() -> None:
    """It is negative, so that the maximum does not have it."""
    numbers = _numbers()
    numbers[7] = np.uint32(0xFFC00000).view(np.float32)
    assert np.isnan(_sum(numbers.ctypes.data))


def test_the_sum_is_the_sum() -> None:
    """Up to the order in which it is added."""
    numbers = _numbers()
    assert _sum(numbers.ctypes.data) == pytest.approx(float(numbers.astype(np.float64).sum()), 1e-5)
