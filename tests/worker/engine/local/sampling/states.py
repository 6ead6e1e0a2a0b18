"""Sampler states for tests, and strategies that make their settings."""

from collections.abc import Sequence

from hypothesis import strategies as st

from common.jobs import Sampling
from worker.engine.local.sampling import SamplerState

VOCAB_LEN = 150
END = 7

token_ids = st.integers(0, VOCAB_LEN - 1)
token_lists = st.lists(token_ids, max_size=30)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0, 10.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 5, 149, 150, 1_000_000]),
    seed=st.integers(0, 2**63 - 1),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, 200), st.floats(-100, 100), max_size=5),
)


def state_of(
    sampling: Sampling,
    prompt_ids: Sequence[int] = (),
    generated_ids: Sequence[int] = (),
    *,
    min_tokens: int = 0,
    num_logprobs: int | None = None,
    choice: int = 0,
) -> SamplerState:
    """Return a state over the tests' vocabulary, whose one end token is ``END``."""
    return SamplerState(
        sampling,
        prompt_ids=prompt_ids,
        generated_ids=generated_ids,
        vocab_len=VOCAB_LEN,
        banned_before_min=frozenset({END}),
        min_tokens=min_tokens,
        num_logprobs=num_logprobs,
        choice=choice,
    )


states = st.builds(
    state_of,
    samplings,
    token_lists,
    token_lists,
    min_tokens=st.integers(0, 30),
    num_logprobs=st.none() | st.integers(0, 200),
    choice=st.integers(0, 3),
)
