"""What a log says of its answer."""

from hypothesis import given
from hypothesis import strategies as st

from common.emitted import NOTHING, Emitted, emitted, emitted_choices, num_emitted
from common.events import Accepted, Event, Reset, Retrying, Started, TokenLogprob, Tokens

silent = st.sampled_from([Accepted("j", "m"), Started("w", 1), Retrying("worker_lost")])
tokens = st.builds(
    Tokens,
    st.just(0),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.text(max_size=3),
    st.integers(0, 1),
)
events = st.lists(silent | tokens, max_size=8)


@given(events)
def test_the_answer_is_the_sum_of_the_deltas(log: list[Event]) -> None:
    """Identifiers and text add up in order, and other events say nothing."""
    for choice, answer in enumerate(emitted_choices(log, 2)):
        deltas = [e for e in log if isinstance(e, Tokens) and e.choice == choice]
        ids = tuple(token for delta in deltas for token in delta.ids)
        assert answer == Emitted(ids, "".join(delta.text for delta in deltas))
        assert answer == emitted(log, choice)


@given(events, events)
def test_a_reset_discards_what_was_before(before: list[Event], after: list[Event]) -> None:
    """What comes after a reset is the whole answer, and all tokens that count."""
    assert emitted([*before, Reset("model")]) == NOTHING
    assert emitted([*before, Reset("model"), *after]) == emitted(after)
    num_ids = sum(len(answer.ids) for answer in emitted_choices(after, 2))
    assert num_emitted([*before, Reset("model"), *after]) == num_ids


def test_the_prompt_is_no_part_of_the_answer() -> None:
    """An echo is kept apart, and discarded with the rest."""
    log = [Tokens(0, (), "Once", echo=True), Tokens(0, (1,), " upon")]
    assert emitted(log) == Emitted((1,), " upon", "Once")
    scored = Tokens(0, (), "", logprobs=(TokenLogprob(1, "Once", -1.0),), echo=True)
    assert emitted([*log, scored]).num_echo_logprobs == 1
    assert emitted([*log, Reset("model")]) == NOTHING
