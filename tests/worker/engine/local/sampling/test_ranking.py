"""Ranks follow the logits, and the token IDs where those are equal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.local.sampling.ranking import greatest, largest

# Few distinct values over several blocks: ties everywhere, within blocks and across.
tied = st.lists(
    st.sampled_from([0.0, -0.0, 1.5, -1.5, 3.0, -1e-45, 3e38, -torch.inf]), min_size=1, max_size=400
)


def _stable(logits: torch.Tensor) -> list[int]:
    return logits.sort(dim=-1, descending=True, stable=True).indices[0].tolist()


@settings(deadline=None)
@given(tied, st.integers(0, 500))
def test_ranks_are_those_of_a_stable_sort(values: list[float], count: int) -> None:
    """Of equal logits the lower token ID comes first, however few are asked for."""
    logits = torch.tensor([values])
    assert largest(logits, count)[0].tolist() == _stable(logits)[:count]


@pytest.mark.parametrize("count", [1, 5, 50, 300, 385, 2048, 49_000, 49_161])
def test_a_bfloat16_vocabulary_is_ranked(count: int) -> None:
    """Few picked out by blocks and many sorted are in the same order."""
    generator = torch.Generator().manual_seed(count)
    logits = (torch.randn(2, 49_161, generator=generator) * 3).bfloat16().float()
    assert largest(logits, count)[:1].tolist()[0] == _stable(logits)[:count]
    assert largest(logits, count)[1:].tolist()[0] == _stable(logits[1:])[:count]


@settings(deadline=None)
@given(tied)
def test_the_greatest_is_the_first_of_its_equals(values: list[float]) -> None:
    """A greedy choice among equals is the lowest token ID."""
    logits = torch.tensor([values, values[::-1]])
    found, ids = greatest(logits)
    assert torch.equal(found, logits.amax(dim=-1))
    assert ids.tolist() == [values.index(max(values)), values[::-1].index(max(values))]


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=100), st.data())
def test_a_row_with_a_nan_is_seen_by_its_greatest(values: list[float], data: st.DataObject) -> None:
    """Wherever the NaN is, it is the greatest."""
    values[data.draw(st.integers(0, len(values) - 1))] = torch.nan
    assert greatest(torch.tensor([values]))[0].isnan().all()
