"""A draw inverts the cumulative distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.local.sampling.drawing import block_sums, draw

weights_of_a_row = st.lists(
    st.sampled_from([0.0, 0.0, 1.0, 0.5, 1e-3, 1e-20]), min_size=1, max_size=300
).filter(any)


def _draw(weights: list[float], uniform: float) -> int:
    uniforms = torch.tensor([[uniform]], dtype=torch.float64)
    return int(draw(torch.tensor([weights], dtype=torch.float64), uniforms))


@settings(deadline=None)
@given(weights_of_a_row, st.floats(0, 1, exclude_max=True))
def test_the_choice_is_where_the_cumulative_weight_passes_the_number(
    weights: list[float], uniform: float
) -> None:
    """The tokens' shares of [0, 1) lie side by side in the order of their IDs."""
    chosen = _draw(weights, uniform)
    ends = np.cumsum(weights) / np.sum(weights)
    assert weights[chosen] > 0
    assert (ends[chosen] - weights[chosen] / np.sum(weights)) <= uniform + 1e-12
    assert uniform <= ends[chosen] + 1e-12


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 300))
def test_the_greatest_number_stops_at_the_last_weight(before: int, after: int) -> None:
    """Rounding at the end of the distribution never chooses what cannot be."""
    weights = [0.1] * before + [0.0] * after
    assert _draw(weights, 1 - 2**-53) == before - 1
    assert _draw(weights, 0.0) == 0
    assert _draw([0.0] * after + [0.1] * before, 0.0) == after


def test_a_row_of_no_numbers_yields_some_index() -> None:
    """Nothing but that row is harmed."""
    weights = torch.tensor([[torch.nan] * 200, [0.0] * 199 + [1.0]])
    chosen = draw(weights, torch.tensor([[0.5], [0.5]], dtype=torch.float64)).tolist()
    assert 0 <= chosen[0] < 200
    assert chosen[1] == 199


@settings(deadline=None)
@given(weights_of_a_row)
def test_block_sums_hold_the_whole_mass(weights: list[float]) -> None:
    """No weight is left out where the last block is not full."""
    sums = block_sums(torch.tensor([weights], dtype=torch.float64))
    assert float(sums.sum()) == pytest.approx(sum(weights))
