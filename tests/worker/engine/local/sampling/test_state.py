"""A state remembers what the next position needs."""

from hypothesis import given

from common.jobs import Sampling
from tests.worker.engine.local.sampling.states import (
    END,
    VOCAB_LEN,
    samplings,
    state_of,
    token_lists,
)
from worker.engine.local.sampling import SamplerState
from worker.engine.local.sampling.randomness import uniform


def _memory(state: SamplerState) -> tuple[object, ...]:
    history = state.history
    tokens = None if history is None else (history.ids.tolist(), history.counts.tolist())
    return state.position, tokens, state.banned_ids.tolist(), state.uniform()


@given(samplings, token_lists, token_lists)
def test_a_replayed_state_is_one_made_with_the_tokens(
    sampling: Sampling, prompt_ids: list[int], generated_ids: list[int]
) -> None:
    """A takeover that pushes the answer so far arrives at the same state."""
    replayed = state_of(sampling, prompt_ids, min_tokens=10)
    for token_id in generated_ids:
        replayed.push(token_id)
    made = state_of(sampling, prompt_ids, generated_ids, min_tokens=10)
    assert _memory(replayed) == _memory(made)


def test_nothing_is_remembered_without_a_penalty() -> None:
    """A sequence whose settings need no history keeps none."""
    state = state_of(Sampling(), [1, 2], [3])
    assert state.history is None
    assert not state.changes_logits
    assert state.position == 1


def test_the_prompt_is_remembered_for_the_repetition_penalty_alone() -> None:
    """Presence and frequency penalties are about the answer only."""
    repeated = state_of(Sampling(repetition_penalty=1.1), [1, 2], [3]).history
    present = state_of(Sampling(presence_penalty=1.0), [1, 2], [3]).history
    assert repeated is not None
    assert present is not None
    assert repeated.ids.tolist() == [1, 2, 3]
    assert present.ids.tolist() == [3]


def test_tokens_without_a_logit_are_ignored() -> None:
    """Neither prompt nor settings of one job can reach outside its row."""
    outside = {VOCAB_LEN: 1.0, -1: 1.0, 5: 2.0}
    state = SamplerState(
        Sampling(repetition_penalty=2.0, logit_bias=outside),
        prompt_ids=[VOCAB_LEN, -3, 4],
        generated_ids=[VOCAB_LEN + 1, 6],
        vocab_len=VOCAB_LEN,
        banned_before_min=frozenset({END, VOCAB_LEN, -1}),
        min_tokens=9,
    )
    assert state.history is not None
    assert state.history.ids.tolist() == [4, 6]
    assert state.bias_ids.tolist() == [5]
    assert state.banned_ids.tolist() == [END]
    assert state.position == 2


def test_the_end_is_banned_until_there_are_enough_tokens() -> None:
    """The ban holds for positions below ``min_tokens``."""
    state = state_of(Sampling(), min_tokens=2)
    banned = []
    for _ in range(4):
        banned.append(state.banned_ids.tolist())
        state.push(1)
    assert banned == [[END], [END], [], []]


def test_each_choice_has_its_own_numbers() -> None:
    """The answers of one job differ though they share the seed."""
    numbers = [state_of(Sampling(seed=3), [], [1, 2], choice=choice).uniform() for choice in (0, 1)]
    assert numbers == [uniform(3, 2), uniform(3, 2, 1)]
