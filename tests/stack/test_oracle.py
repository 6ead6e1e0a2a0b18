"""The oracle of the fault tests finds each fault that they look for."""

import pytest

from common.events import Accepted, Completed, Event, Retrying, Started, Tokens, Usage, encode_event
from common.jobs import FinishReason
from tests.support.oracle import Story

END = Completed(FinishReason.STOP, usage=Usage(3, 4), attempts=2, worker="b")
EVENTS: list[Event] = [
    Accepted("job", "tiny"),
    Started("a", 1),
    Tokens(0, (1, 2), "Ri"),
    Tokens(2, (3,), "v"),
    Retrying("worker_lost"),
    Started("b", 2),
    Tokens(3, (4,), "er"),
    END,
]
SEEN = list(enumerate(EVENTS))
MERGED = [*SEEN[:2], (3, Tokens(0, (1, 2, 3), "Riv")), *SEEN[4:]]


def tell(events: list[Event]) -> Story:
    """Return the story of a log with these events."""
    return Story("job", [(n, encode_event(event)) for n, event in enumerate(events)])


def test_it_accepts_a_whole_story_with_merged_tokens_and_from_a_cursor() -> None:
    """A log in order, and readers that saw all of it, merged or from a cursor on, pass."""
    story = tell(EVENTS)
    story.check(SEEN)
    story.check(MERGED)
    story.check(SEEN[3:], after=2)
    assert story.text == "River"
    assert story.outline == "accepted started tokens retrying started tokens completed"
    assert story.workers == ["a", "b"]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(EVENTS[:-1], id="no-end"),
        pytest.param([*EVENTS, END], id="two-ends"),
        pytest.param([*EVENTS[:4], EVENTS[3], *EVENTS[4:]], id="tokens-twice"),
        pytest.param([*EVENTS[:3], *EVENTS[4:]], id="tokens-lost"),
        pytest.param([*EVENTS[:6], EVENTS[5], *EVENTS[6:]], id="started-twice"),
        pytest.param([*EVENTS[:5], *EVENTS[6:]], id="nobody-started"),
    ],
)
def test_it_refuses_a_log_with_a_fault(events: list[Event]) -> None:
    """Two ends, no end, and repeated or lost events of a log are found."""
    with pytest.raises(AssertionError):
        tell(events)


def test_it_counts_the_tokens_of_each_answer() -> None:
    """Answers that take turns are a story, and a reader must have been told which is whose."""
    others: list[Event] = [Tokens(0, (8,), "Lake", choice=1), Tokens(3, (4,), "er")]
    end = Completed(FinishReason.STOP, usage=Usage(3, 5), attempts=1, worker="a")
    events = [*EVENTS[:4], *others, end]
    story = tell(events)
    story.check(list(enumerate(events)))
    assert story.text == "River"
    with pytest.raises(AssertionError, match="another answer"):
        story.check([*enumerate(events[:4]), (5, Tokens(3, (8, 4), "Lakeer")), (6, end)])


def test_it_refuses_a_log_with_a_gap_in_its_numbers() -> None:
    """A missing number is found even where the events themselves look whole."""
    log = [(n + (n > 2), encode_event(event)) for n, event in SEEN]
    with pytest.raises(AssertionError, match="gap"):
        Story("job", log)


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(SEEN[:-1], id="no-end"),
        pytest.param(SEEN[1:], id="late"),
        pytest.param([*SEEN[:3], *SEEN[4:]], id="gap"),
        pytest.param([*SEEN[:4], *SEEN[3:]], id="repeat"),
        pytest.param([*SEEN[:4], *SEEN[5:]], id="no-retrying"),
        pytest.param([*SEEN[:3], (3, Tokens(2, (3,), "V")), *SEEN[4:]], id="another-text"),
        pytest.param([*SEEN[:2], SEEN[3], SEEN[2], *SEEN[4:]], id="order"),
    ],
)
def test_it_refuses_a_reader_that_saw_something_else(seen: list[tuple[int, Event]]) -> None:
    """A reader with a gap, a repeat, another order or another text is found."""
    with pytest.raises(AssertionError):
        tell(EVENTS).check(seen)
