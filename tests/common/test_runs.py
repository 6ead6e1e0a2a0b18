"""Neighbouring ``tokens`` events as one."""

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from common.emitted import emitted_choices
from common.events import Alternative, TokenLogprob, Tokens
from common.runs import MAX_SIZE, Run, joined, rough_size

_ENTRY = TokenLogprob(123_456, "tok", -0.123456, (Alternative(123_457, "other", -2.345678),) * 20)

tokens = st.builds(
    Tokens,
    st.just(0),
    st.tuples(st.integers(0, 9)),
    st.text(max_size=3),
    st.integers(0, 1),
    st.sampled_from([(), (TokenLogprob(1, "a", -1.0),)]),
)


@given(st.lists(tokens))
def test_joined_events_say_the_same(events: list[Tokens]) -> None:
    """Neighbours of one answer become one event; IDs, text and logprobs add up."""
    runs = joined(events)
    assert emitted_choices(runs, 2) == emitted_choices(events, 2)
    assert all(a.choice != b.choice for a, b in itertools.pairwise(runs))
    assert [e for t in runs for e in t.logprobs] == [e for t in events for e in t.logprobs]


def test_an_echo_is_no_part_of_the_answer() -> None:
    """The prompt's text and the answer's stay apart."""
    echo, answer = Tokens(0, (), "Once", echo=True), Tokens(0, (1,), " upon")
    assert joined([echo, answer]) == [echo, answer]
    assert joined([echo, echo]) == [Tokens(0, (), "OnceOnce", echo=True)]


def test_a_lone_event_is_itself() -> None:
    """Nothing is copied."""
    event = Tokens(0, (1,), "a")
    assert Run(event).joined() is event


def test_a_run_has_a_size() -> None:
    """With many alternatives it has fewer tokens, and what a client reads is never too much."""
    bare = Tokens(0, (70_000,), "\x01\x01\x01")
    rich = Tokens(0, (70_000,), "tok", logprobs=(_ENTRY,))
    for event in (bare, rich):
        runs = joined([event] * (2 * MAX_SIZE // rough_size(event)))
        assert len(runs) in (2, 3)
        assert all(len(msgspec.json.encode(run)) < 1_000_000 for run in runs)
