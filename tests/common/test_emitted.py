"""What a log says of its answer."""

from hypothesis import given
from hypothesis import strategies as st

from common.emitted import NOTHING, Emitted, emitted
from common.events import Accepted, Event, Reset, Retrying, Started, Tokens

silent = st.sampled_from([Accepted("j", "m"), Started("w", 1), Retrying("worker_lost")])
tokens = st.builds(
    Tokens, st.just(0), st.lists(st.integers(0, 9), max_size=3).map(tuple), st.text(max_size=3)
)
events = st.lists(silent | tokens, max_size=8)


@given(events)
def test_the_answer_is_the_sum_of_the_deltas(log: list[Event]) -> None:
    """Identifiers and text add up in order, and other events say nothing."""
    deltas = [event for event in log if isinstance(event, Tokens)]
    ids = tuple(token for delta in deltas for token in delta.ids)
    assert emitted(log) == Emitted(ids, "".join(delta.text for delta in deltas))


@given(events, events)
def test_a_reset_discards_what_was_before(before: list[Event], after: list[Event]) -> None:
    """What comes after a reset is the whole answer."""
    assert emitted([*before, Reset("model")]) == NOTHING
    assert emitted([*before, Reset("model"), *after]) == emitted(after)
