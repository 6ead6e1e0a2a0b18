"""The growing document: only the next event fits."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import Accepted, Event, Reset, Started, TokenLogprob, Tokens, encode_event
from common.runs import MAX_SIZE, rough_size
from gateway.transcript import Offer, Transcript, merged
from tests.gateway.followers import check_is_log
from tests.gateway.player import DONE

ACCEPTED = encode_event(Accepted("job", "tiny"))
TOKENS = encode_event(Tokens(0, (1,), "a"))


@pytest.fixture
def transcript() -> Transcript:
    """A transcript with event 0."""
    transcript = Transcript("i")
    transcript.offer("i", 0, ACCEPTED)
    return transcript


def test_the_next_event_is_taken(transcript: Transcript) -> None:
    """It is the last one afterwards."""
    assert transcript.offer("i", 1, TOKENS) is Offer.TAKEN
    assert transcript.events == [Accepted("job", "tiny"), Tokens(0, (1,), "a")]


@pytest.mark.parametrize(
    ("incarnation", "n", "offer"),
    [("i", 0, Offer.DIVERGED), ("i", 2, Offer.AHEAD), ("other", 1, Offer.FOREIGN)],
)
def test_nothing_else_is(transcript: Transcript, incarnation: str, n: int, offer: Offer) -> None:
    """Another event of a known number, an early and a foreign one leave the document as it is."""
    assert transcript.offer(incarnation, n, TOKENS) is offer
    assert len(transcript) == 1


def test_a_repeated_event_is_known(transcript: Transcript) -> None:
    """It changes nothing."""
    assert transcript.offer("i", 0, ACCEPTED) is Offer.KNOWN
    assert len(transcript) == 1


def test_an_event_that_does_not_fit_is_not_even_decoded(transcript: Transcript) -> None:
    """Damage in what is not taken does no harm."""
    assert transcript.offer("i", 2, b"\xff") is Offer.AHEAD


def test_a_damaged_event_leaves_no_trace(transcript: Transcript) -> None:
    """The same number can come again, whole."""
    with pytest.raises(msgspec.DecodeError):
        transcript.offer("i", 1, b"\xc1")
    assert transcript.offer("i", 1, TOKENS) is Offer.TAKEN


def test_the_terminal_event_ends_it(transcript: Transcript) -> None:
    """It says so only then."""
    assert not transcript.ended
    transcript.offer("i", 1, encode_event(DONE))
    assert transcript.ended


_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        Tokens,
        st.just(0),
        st.tuples(st.integers(0, 9)),
        st.text(max_size=3),
        st.integers(0, 1),
        st.sampled_from([(), (TokenLogprob(1, "a", -1.0),)]),
        st.booleans(),
    ),
    st.sampled_from([Started("w1", 1), Reset("other model")]),
)


@given(st.lists(_events, max_size=12), st.data())
def test_merged_events_say_the_same(middle: list[Event], data: st.DataObject) -> None:
    """From any start, merging loses nothing, repeats nothing and crosses no other event."""
    log = [Accepted("job", "tiny"), *middle, DONE]
    start = data.draw(st.integers(0, len(log) - 1))
    frames = merged(log[start:], start)
    check_is_log(frames, log, after=start - 1)
    kinds = [
        (event.choice, event.echo) if isinstance(event, Tokens) else None for _, event in frames
    ]
    assert all(a is None or a != b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("logprobs", [(), (TokenLogprob(1, "a", -1.0),) * 20])
def test_a_long_answer_is_merged_into_several_frames(logprobs: tuple[TokenLogprob, ...]) -> None:
    """A reader that comes late gets frames that its client can still take."""
    one = Tokens(0, (0,), "a", logprobs=logprobs)
    num_events = 2 * MAX_SIZE // rough_size(one)
    log: list[Event] = [Tokens(n, (n,), "a", logprobs=logprobs) for n in range(num_events)]
    frames = merged(log, 0)
    assert 2 <= len(frames) <= 3
    check_is_log([*frames, (len(log), DONE)], [*log, DONE])


def test_a_lone_event_is_passed_on_as_it_is() -> None:
    """A reader that keeps up costs no copy."""
    event = Tokens(0, (1,), "a")
    assert merged([event], 7)[0] == (7, event)
    assert merged([event], 7)[0][1] is event


def test_no_events_make_no_frames() -> None:
    """An empty run is none."""
    assert merged([], 3) == []
