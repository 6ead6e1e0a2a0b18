"""Truncation keeps the tokens that transformers' warpers keep."""

from typing import cast

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from common.jobs import Sampling
from tests.worker.engine.local.sampling.states import VOCAB_LEN, state_of
from worker.engine.local.sampling.ranking import largest
from worker.engine.local.sampling.settings import Settings
from worker.engine.local.sampling.truncation import draw_nucleus, draw_ranked, num_kept, weigh

# Where a token's fate hangs on the last digit, implementations may differ.
_NEAR = 1e-4


def _expected(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return what transformers leaves of the logits, the others being -inf."""
    scores = logits / sampling.temperature
    ids = cast("torch.LongTensor", torch.zeros(1, 1, dtype=torch.long))
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return MinPLogitsWarper(sampling.min_p)(ids, scores) if sampling.min_p else scores


def _is_clear(logits: Tensor, sampling: Sampling) -> bool:
    """Tell whether no token is near the edge of the nucleus or of min-p."""
    top_k_only = Sampling(temperature=sampling.temperature, top_k=sampling.top_k)
    scores = _expected(logits, top_k_only).double()
    ranked = scores.softmax(dim=-1).sort(descending=True).values
    from_top_p = (ranked.cumsum(dim=-1) - sampling.top_p).abs()
    from_min_p = (ranked / ranked[:, :1] - sampling.min_p).abs()
    is_clear_of_top_p = sampling.top_p == 1 or bool((from_top_p > _NEAR).all())
    return is_clear_of_top_p and (not sampling.min_p or bool((from_min_p > _NEAR).all()))


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.builds(
        Sampling,
        temperature=st.floats(0.1, 5),
        top_k=st.integers(0, VOCAB_LEN),
        top_p=st.just(1.0) | st.floats(0.01, 0.99),
        min_p=st.just(0.0) | st.floats(0.01, 0.9),
    ),
)
def test_the_kept_tokens_and_their_weights_are_those_of_transformers(
    seed: int, sampling: Sampling
) -> None:
    """Temperature, top-k, top-p and min-p leave the same distribution."""
    logits = torch.randn(1, VOCAB_LEN, generator=torch.Generator().manual_seed(seed)) * 3
    assume(_is_clear(logits, sampling))
    expected = _expected(logits, sampling).double().softmax(dim=-1)[0]
    columns = Settings.of([state_of(sampling)], logits.device)
    ids = largest(logits, sampling.top_k or VOCAB_LEN)
    weights = weigh(
        logits.gather(1, ids).double(), logits.amax(1, keepdim=True), columns.temperature
    )
    cumulative = weights.cumsum(dim=-1)
    kept = int(num_kept(weights, cumulative, cumulative[:, -1:], columns))
    found = torch.zeros(VOCAB_LEN, dtype=torch.float64)
    found[ids[0, :kept]] = weights[0, :kept] / weights[0, :kept].sum()
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("spread", [5.0, 2.5, 1.0, 0.1])
def test_a_nucleus_of_any_size_is_the_one_of_a_full_sort(spread: float) -> None:
    """Few, thousands or nearly all of the tokens: the rows of one batch need different steps."""
    vocab_len = 10_007
    logits = torch.randn(16, vocab_len, generator=torch.Generator().manual_seed(5)) * spread
    logits[::2] *= 2
    top = logits.amax(dim=-1, keepdim=True)
    states = [state_of(Sampling(top_p=0.95, min_p=1e-4, seed=seed)) for seed in range(16)]
    columns = Settings.of(states, logits.device)
    expected = draw_ranked(logits, top, columns, vocab_len)
    chosen = draw_nucleus(logits.clone(), top, columns)
    # In float32 close logits may have the same weight; then the order is that of their IDs.
    found = logits.gather(1, torch.stack([chosen, expected], dim=1))
    assert torch.allclose(found[:, 0], found[:, 1], rtol=0, atol=1e-6)


def test_of_equal_logits_top_k_keeps_the_lower_ids() -> None:
    """There are never more than ``top_k`` tokens to choose from."""
    logits = torch.zeros(200, VOCAB_LEN)
    states = [state_of(Sampling(top_k=1 + seed % 4, seed=seed)) for seed in range(200)]
    columns = Settings.of(states, logits.device)
    chosen = draw_ranked(logits, torch.zeros(200, 1), columns, 4).tolist()
    assert [max(chosen[k::4]) for k in range(4)] == [0, 1, 2, 3]
