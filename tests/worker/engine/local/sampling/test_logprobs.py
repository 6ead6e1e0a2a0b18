"""Log-probabilities are the model's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.jobs import Sampling
from tests.worker.engine.local.sampling.states import VOCAB_LEN, samplings, state_of
from worker.engine.local.sampling import RawLogprobs, Sampler


def _logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB_LEN, generator=torch.Generator().manual_seed(7)) * 3


@settings(deadline=None)
@given(samplings, st.integers(0, 200))
def test_they_are_the_log_softmax_of_the_logits_as_they_came(
    sampling: Sampling, num_logprobs: int
) -> None:
    """Temperature, penalties and truncation do not show in them; the likeliest come first."""
    logits = _logits()
    expected = logits.log_softmax(dim=-1)[0]
    state = state_of(sampling, [1], [2], min_tokens=9, num_logprobs=num_logprobs)
    sampled = Sampler().sample(logits.clone(), [state])
    found = sampled.logprobs[0]
    assert found is not None
    assert found.logprob == pytest.approx(float(expected[sampled.ids[0]]))
    ranked = expected.sort(descending=True, stable=True)
    assert found.top_ids == ranked.indices[:num_logprobs].tolist()
    assert found.top_logprobs == pytest.approx(ranked.values[:num_logprobs].tolist())


def test_only_rows_that_ask_are_told() -> None:
    """Rows may ask for different numbers of alternatives, or for none."""
    states = [state_of(Sampling(), num_logprobs=num) for num in (None, 0, 3, None, 1)]
    found = Sampler().sample(_logits(5), states).logprobs
    assert [None if row is None else len(row.top_ids) for row in found] == [None, 0, 3, None, 1]


def test_tokens_that_the_model_rules_out_are_no_alternatives() -> None:
    """A probability of 0 has no logarithm that JSON could carry."""
    logits = torch.full((1, VOCAB_LEN), -torch.inf)
    logits[0, [3, 5]] = 0.0
    (found,) = Sampler().sample(logits, [state_of(Sampling(), num_logprobs=4)]).logprobs
    assert found is not None
    assert found.top_ids == [3, 5]
    assert found.top_logprobs == pytest.approx([-math.log(2)] * 2)


def test_a_broken_row_has_none() -> None:
    """Where nothing is chosen there is nothing to report; the neighbour gets its own."""
    logits = _logits(2)
    logits[0, 9] = torch.nan
    states = [state_of(Sampling(temperature=0), num_logprobs=1) for _ in range(2)]
    broken, whole = Sampler().sample(logits, states).logprobs
    assert broken is None
    assert isinstance(whole, RawLogprobs)
