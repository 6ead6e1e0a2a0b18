"""The sampler chooses as each row's settings say, whatever its neighbours are."""

import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.jobs import Sampling
from tests.worker.engine.local.sampling.states import END, VOCAB_LEN, state_of, states
from worker.engine.local.sampling import Sampled, Sampler, SamplerState
from worker.engine.local.sampling.randomness import uniform

_DRAWS = 2000
_DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that there is."""
    return str(request.param)


def _logits(rows: int, seed: int = 0, vocab_len: int = VOCAB_LEN) -> Tensor:
    return torch.randn(rows, vocab_len, generator=torch.Generator().manual_seed(seed)) * 3


def _sample(logits: Tensor, batch: Sequence[SamplerState]) -> Sampled:
    return Sampler().sample(logits.clone(), batch)


def _counts(row: Tensor, sampling: Sampling) -> Counter[int]:
    """Return how often each token is chosen at the first positions of an answer."""
    batch = [state_of(sampling, [], [0] * position) for position in range(100)]
    ids = []
    for seed in range(_DRAWS // 100):
        for state in batch:
            state.sampling = msgspec.structs.replace(sampling, seed=seed)
        ids += _sample(row.expand(100, -1), batch).ids
    return Counter(ids)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), 8),
        (Sampling(temperature=0.5), 8),
        (Sampling(temperature=2.5), 8),
        (Sampling(top_k=3), 3),
        (Sampling(top_p=0.7), 3),
        (Sampling(min_p=0.4), 3),
        (Sampling(top_k=140), 8),
        (Sampling(top_k=5, top_p=0.8, min_p=0.7), 2),
    ],
)
def test_frequencies_follow_the_probabilities(device: str, sampling: Sampling, kept: int) -> None:
    """Each way to draw gives every token it keeps its share, by the chi-square statistic."""
    probabilities = torch.tensor([0.3, 0.22, 0.19, 0.11, 0.08, 0.05, 0.03, 0.02])
    row = torch.full((VOCAB_LEN,), -torch.inf)
    places = torch.tensor([140, 3, 77, 149, 0, 12, 64, 63])
    row[places] = probabilities.log()
    counts = _counts(row.to(device), sampling)
    expected = (probabilities[:kept].log() / sampling.temperature).softmax(dim=-1) * _DRAWS
    assert set(counts) == set(places[:kept].tolist())
    found = torch.tensor([counts[place] for place in places[:kept].tolist()])
    # At most 7 degrees of freedom: one in 100,000 is above 35.
    assert float(((found - expected) ** 2 / expected).sum()) < 35


@settings(deadline=None)
@given(st.lists(states, min_size=1, max_size=8), st.integers(0, 2**32), st.randoms())
def test_a_row_does_not_depend_on_the_others(
    batch: list[SamplerState], seed: int, random: Random
) -> None:
    """Alone, in another order and beside broken rows, a sequence gets the same token."""
    logits = _logits(len(batch), seed)
    together = _sample(logits, batch)
    order = random.sample(range(len(batch)), len(batch))
    shuffled = _sample(logits[order], [batch[row] for row in order])
    for place, row in enumerate(order):
        broken = torch.full((1, VOCAB_LEN), torch.nan)
        alone = _sample(torch.cat([broken, logits[row : row + 1]]), [batch[0], batch[row]])
        assert together.ids[row] == shuffled.ids[place] == alone.ids[1]
        assert together.logprobs[row] == shuffled.logprobs[place] == alone.logprobs[1]


@pytest.mark.parametrize("vocab_len", [49_152, 50_257])
def test_a_whole_vocabulary_does_not_change_that(device: str, vocab_len: int) -> None:
    """With many logits too, the choice is the same alone, in a batch, and again."""
    kinds = [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(temperature=0.3, top_p=0.9, seed=2),
        Sampling(top_p=0.9, seed=3),
        Sampling(temperature=5, top_p=0.99, seed=4),
        Sampling(top_k=50, seed=5),
        Sampling(top_p=0.9, top_k=700, seed=6),
        Sampling(temperature=2, top_p=0.9, top_k=40_000, min_p=0.01, seed=7),
        Sampling(min_p=0.1, seed=8),
    ]
    batch = [
        SamplerState(kind, prompt_ids=(), generated_ids=(), vocab_len=vocab_len) for kind in kinds
    ]
    logits = _logits(len(batch), 3, vocab_len).bfloat16().float().to(device)
    together = _sample(logits, batch)
    assert together == _sample(logits, batch)
    alone = [_sample(logits[row : row + 1], [state]).ids[0] for row, state in enumerate(batch)]
    assert together.ids == alone


@settings(deadline=None)
@given(st.lists(states, min_size=1, max_size=8), st.integers(0, 2**32))
def test_any_settings_choose_a_token(batch: list[SamplerState], seed: int) -> None:
    """Sound logits always lead to a token of the vocabulary, with no end too early."""
    sampled = _sample(_logits(len(batch), seed), batch)
    assert all(sampled.is_finite)
    for token_id, state in zip(sampled.ids, batch, strict=True):
        assert 0 <= token_id < VOCAB_LEN
        assert token_id not in state.banned_ids


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 9e-6])
def test_at_no_temperature_the_greatest_logit_wins(device: str, temperature: float) -> None:
    """Greedy is the first of the greatest logits, after bias and penalties."""
    logits = torch.zeros(3, VOCAB_LEN, device=device)
    logits[:, [5, 9]] = 4.0
    greedy = Sampling(temperature=temperature)
    batch = [
        state_of(greedy),
        state_of(Sampling(temperature=temperature, logit_bias={5: -1.0})),
        state_of(Sampling(temperature=temperature, repetition_penalty=2.0, top_k=3), [5], [9]),
    ]
    logits[2, 0] = 3.0
    assert _sample(logits, batch).ids == [5, 9, 0]


def test_a_bias_bans_and_forces(device: str) -> None:
    """-100 and 100 decide, at every temperature that is in use."""
    logits = _logits(1).expand(50, -1).to(device)
    best = int(logits[0].argmax())
    banned = _sample(
        logits, [state_of(Sampling(seed=s, logit_bias={best: -100})) for s in range(50)]
    )
    forced = _sample(logits, [state_of(Sampling(seed=s, logit_bias={31: 100})) for s in range(50)])
    assert best not in banned.ids
    assert set(forced.ids) == {31}


def test_the_end_cannot_be_chosen_before_min_tokens(device: str) -> None:
    """Then the next likely token is, and later the end again."""
    logits = torch.zeros(1, VOCAB_LEN, device=device)
    logits[0, END] = 50.0
    state = state_of(Sampling(), min_tokens=20)
    chosen = []
    for _ in range(25):
        chosen.append(_sample(logits, [state]).ids[0])
        state.push(chosen[-1])
    assert END not in chosen[:20]
    assert set(chosen[20:]) == {END}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@settings(deadline=None)
@given(batch=st.lists(states, min_size=3, max_size=3), place=st.integers(0, VOCAB_LEN - 1))
def test_a_row_with_a_broken_logit_is_reported(
    bad: float, batch: list[SamplerState], place: int
) -> None:
    """Also where a ban or a bias covers it; the neighbours get what they would have got."""
    logits = _logits(3)
    expected = _sample(logits, batch).ids
    logits[1, place] = bad
    sampled = _sample(logits, batch)
    assert sampled.is_finite == [True, False, True]
    assert sampled.ids == [expected[0], -1, expected[2]]


def test_a_row_without_any_possible_token_is_reported(device: str) -> None:
    """Whether the model rules out everything or the ban takes the rest; one token is enough."""
    logits = torch.full((3, VOCAB_LEN), -torch.inf, device=device)
    logits[1, END] = 1.0
    logits[2, 5] = 1.0
    batch = [
        state_of(Sampling()),
        state_of(Sampling(), min_tokens=1),
        state_of(Sampling(top_p=0.5)),
    ]
    sampled = _sample(logits, batch)
    assert sampled.is_finite == [False, False, True]
    assert sampled.ids == [-1, -1, 5]


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 20), st.integers(0, 3))
def test_the_number_of_the_position_chooses(seed: int, position: int, choice: int) -> None:
    """With equal probabilities the token is the random number's place in the vocabulary."""
    state = state_of(Sampling(seed=seed), [], [0] * position, choice=choice)
    sampled = _sample(torch.zeros(1, VOCAB_LEN), [state])
    assert sampled.ids == [math.floor(uniform(seed, position, choice) * VOCAB_LEN)]


def test_an_empty_batch_has_no_tokens() -> None:
    """A step in which nobody finishes its prompt samples nothing."""
    assert Sampler().sample(torch.empty(0, VOCAB_LEN), []) == Sampled([], [], [])
