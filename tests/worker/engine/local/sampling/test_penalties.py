"""Bias, penalties and ban change the logits they should, and no others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from common.jobs import Sampling
from tests.worker.engine.local.sampling.states import (
    END,
    VOCAB_LEN,
    state_of,
    states,
    token_ids,
    token_lists,
)
from worker.engine.local.sampling import SamplerState
from worker.engine.local.sampling.penalties import change_logits


def _logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB_LEN, generator=torch.Generator().manual_seed(rows)) * 5


@settings(deadline=None)
@given(st.lists(token_ids, min_size=1, max_size=30), token_lists, st.floats(0.01, 10))
def test_the_repetition_penalty_is_that_of_transformers(
    prompt_ids: list[int], generated_ids: list[int], penalty: float
) -> None:
    """Tokens of prompt and answer are divided where positive, multiplied where negative."""
    logits = _logits()
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([prompt_ids + generated_ids]), logits.clone())
    state = state_of(Sampling(repetition_penalty=penalty), prompt_ids, generated_ids)
    change_logits(logits, [state])
    assert torch.allclose(logits, expected)


@settings(deadline=None)
@given(token_lists, token_lists, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_are_taken_from_tokens_of_the_answer(
    prompt_ids: list[int], generated_ids: list[int], presence: float, frequency: float
) -> None:
    """Once, and once per occurrence, as OpenAI defines them; the prompt does not count."""
    logits = _logits()
    expected = logits.clone()
    for token_id in set(generated_ids):
        expected[0, token_id] -= presence + frequency * generated_ids.count(token_id)
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    change_logits(logits, [state_of(sampling, prompt_ids, generated_ids)])
    # Where a logit and what is taken from it nearly cancel out, its own rounding is left.
    assert torch.allclose(logits, expected, atol=1e-5)


def test_the_bias_is_added_before_the_penalty() -> None:
    """A biased token that repeats is penalised by its logit with the bias."""
    logits = torch.full((1, VOCAB_LEN), 1.0)
    state = state_of(Sampling(repetition_penalty=2.0, logit_bias={3: -2.0, 4: 5.0}), [3])
    change_logits(logits, [state])
    assert logits[0, 2:6].tolist() == [1.0, -2.0, 6.0, 1.0]


def test_a_ban_comes_last() -> None:
    """No bias can lift the ban of the end before ``min_tokens``."""
    logits = _logits()
    change_logits(logits, [state_of(Sampling(logit_bias={END: 100.0}), min_tokens=1)])
    assert logits[0, END] == -torch.inf
    assert logits.isinf().sum() == 1


@pytest.mark.parametrize("bias", [3e38, 1e308, float("inf"), float("-inf"), -1e308])
def test_absurd_settings_leave_every_logit_a_number(bias: float) -> None:
    """Neither a bias nor a penalty makes a row look broken."""
    logits = _logits()
    sampling = Sampling(repetition_penalty=1e-38, logit_bias={3: bias, 4: bias})
    change_logits(logits, [state_of(sampling, [3, 5, 6, 7, 8])])
    assert not logits.isnan().any()
    assert (logits < torch.inf).all()


@settings(deadline=None)
@given(st.lists(states, max_size=6))
def test_rows_are_changed_as_if_alone(batch: list[SamplerState]) -> None:
    """What is done to a row is the same in any batch, and the others stay as they are."""
    logits = _logits(max(1, len(batch)))[: len(batch)]
    alone = logits.clone()
    is_changed = [change_logits(alone[row : row + 1], [state]) for row, state in enumerate(batch)]
    assert change_logits(logits, batch) == any(is_changed)
    assert torch.equal(logits, alone)
