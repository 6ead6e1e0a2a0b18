"""A history counts tokens one by one as a recount would."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.engine.local.sampling.history import History

tokens = st.lists(st.integers(0, 300), max_size=400)


@given(tokens, tokens)
def test_added_tokens_are_counted_and_those_of_the_prompt_are_known(
    prompt_ids: list[int], generated_ids: list[int]
) -> None:
    """Every distinct token is there once, with the number of times it was generated."""
    history = History(prompt_ids)
    for token_id in generated_ids:
        history.add(token_id)
    expected = Counter(generated_ids)
    expected.update(dict.fromkeys(prompt_ids, 0))
    found = list(zip(history.ids.tolist(), history.counts.tolist(), strict=True))
    assert len(history) == len(found)
    assert dict(found) == dict(expected)
    assert len(found) == len(expected)
