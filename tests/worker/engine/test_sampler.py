"""The sampler chooses as its settings say, and the same again."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.jobs import Sampling
from worker.engine.sampler import sample, uniform

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 3.5])


def _counts(logits: Tensor, sampling: Sampling, num_draws: int = 2000) -> Counter[int]:
    return Counter(sample(logits, sampling, position) for position in range(num_draws))


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.01])
def test_at_low_temperature_the_greatest_logit_wins(temperature: float) -> None:
    """Greedy, and all that comes near it, is the argmax at every position."""
    assert _counts(LOGITS, Sampling(temperature=temperature), 100) == {4: 100}


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_frequencies_follow_the_probabilities(temperature: float) -> None:
    """Over many positions every token comes as often as the softmax says."""
    counts = _counts(LOGITS, Sampling(temperature=temperature))
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    for token_id, probability in enumerate(expected.tolist()):
        deviation = math.sqrt(2000 * probability * (1 - probability))
        assert abs(counts[token_id] - 2000 * probability) < 4 * deviation + 1


def test_top_k_keeps_the_k_most_likely() -> None:
    """Tokens below the k-th never come, those above all do."""
    assert set(_counts(LOGITS, Sampling(top_k=2))) == {4, 1}
    assert set(_counts(LOGITS, Sampling(top_k=1))) == {4}
    assert set(_counts(LOGITS, Sampling(temperature=5.0, top_k=99))) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {0}), (0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})],
)
def test_top_p_keeps_the_fewest_that_have_the_mass(top_p: float, kept: set[int]) -> None:
    """The nucleus is the smallest set of likely tokens with at least that probability."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log()
    assert set(_counts(logits, Sampling(top_p=top_p))) == kept


def test_another_seed_or_position_is_another_number() -> None:
    """Seeds and positions do not repeat each other's numbers."""
    numbers = {uniform(seed, position) for seed in range(30) for position in range(30)}
    assert len(numbers) == 900
    assert uniform(2**63 - 1, 2**40) == uniform(2**63 - 1, 2**40)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    st.builds(
        Sampling,
        temperature=st.floats(0, 10),
        top_p=st.floats(1e-6, 1),
        top_k=st.integers(0, 60),
        seed=st.integers(0, 2**63 - 1),
    ),
    st.integers(0, 10**6),
)
def test_any_settings_choose_a_token_and_choose_it_again(
    values: list[float], sampling: Sampling, position: int
) -> None:
    """The choice is a token of the vocabulary and a function of its arguments."""
    logits = torch.tensor(values)
    token_id = sample(logits, sampling, position)
    assert 0 <= token_id < len(values)
    assert sample(logits.clone(), sampling, position) == token_id
