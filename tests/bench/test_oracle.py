"""The benches' oracle counts what was lost and what came twice."""

import pytest

from bench.fleet.clients import Seen
from bench.fleet.oracle import Verdict, judge
from common.events import (
    Accepted,
    Completed,
    ErrorInfo,
    Event,
    Failed,
    Retrying,
    Started,
    Tokens,
    Usage,
)
from common.jobs import FinishReason

END = Completed(FinishReason.LENGTH, usage=Usage(3, 4), attempts=2, worker="b")
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
LOG = list(enumerate(EVENTS))
SEEN = [Seen(float(n), 1, n, event) for n, event in LOG]
TEXT = "River"


def tell(seen: list[Seen], log: list[tuple[int, Event]] = LOG) -> Verdict:
    """Judge the job by what its follower saw."""
    return judge("job", log, seen, TEXT)


def numbered(*events: Event) -> list[tuple[int, Event]]:
    """Return a log with these events."""
    return list(enumerate(events))


def test_a_whole_job_has_no_problems() -> None:
    """A follower that saw every event passes, also where tokens came merged or in two halves."""
    merged = [*SEEN[:2], Seen(3.0, 1, 3, Tokens(0, (1, 2, 3), "Riv")), *SEEN[4:]]
    later = [*SEEN[:4], *(each._replace(connection=2) for each in SEEN[4:])]
    for seen in (SEEN, merged, later):
        assert tell(seen) == Verdict("job", ended=True, lost=0, repeated=0, problems=())


def test_it_finds_a_planted_loss() -> None:
    """A token event that never came counts with all its tokens."""
    verdict = tell([*SEEN[:2], *SEEN[3:]])
    assert (verdict.lost, verdict.repeated, verdict.ended) == (2, 0, True)
    assert verdict.problems


def test_it_finds_a_planted_repeat() -> None:
    """A token event that came again counts, also where it came on another connection."""
    verdict = tell([*SEEN[:4], SEEN[2]._replace(connection=2), *SEEN[4:]])
    assert (verdict.lost, verdict.repeated, verdict.ended) == (0, 2, True)
    assert "event numbers went back" in verdict.problems


def test_it_finds_a_repeat_in_the_log() -> None:
    """A second worker that writes tokens again is found though the follower saw just that."""
    log = numbered(*EVENTS[:6], Tokens(2, (3,), "v"), *EVENTS[6:])
    verdict = tell([Seen(float(n), 1, n, event) for n, event in log], log)
    assert (verdict.lost, verdict.repeated) == (0, 1)


def test_it_finds_a_loss_in_the_log() -> None:
    """Tokens that the end counts and the log lacks are lost, whoever saw what."""
    log = numbered(*EVENTS[:3], *EVENTS[4:])
    verdict = tell([Seen(float(n), 1, n, event) for n, event in log], log)
    assert (verdict.lost, verdict.repeated) == (1, 0)


@pytest.mark.parametrize(
    "log",
    [
        pytest.param(LOG[:-1], id="none"),
        pytest.param(numbered(*EVENTS, END), id="two"),
        pytest.param(numbered(*EVENTS[:4], END, *EVENTS[6:]), id="in-the-middle"),
        pytest.param([], id="no-log"),
    ],
)
def test_a_job_without_exactly_one_end_has_not_ended(log: list[tuple[int, Event]]) -> None:
    """No end, two ends, and one with events behind it are problems."""
    verdict = tell([Seen(float(n), 1, n, event) for n, event in log], log)
    assert not verdict.ended
    assert verdict.problems


def test_a_follower_without_the_end_is_a_problem() -> None:
    """The log may be whole: who followed it must have been told."""
    assert not tell(SEEN[:-1]).ended


def test_another_token_in_the_same_place_is_lost_and_found() -> None:
    """A token that differs from the log's is one lost token, not none."""
    other = [*SEEN[:3], SEEN[3]._replace(event=Tokens(2, (9,), "v")), *SEEN[4:]]
    assert tell(other).lost == 1


def test_another_text_than_the_undisturbed_one_is_a_problem() -> None:
    """Log and follower may agree, and both be wrong."""
    assert judge("job", LOG, SEEN, "Lake").problems
    assert not judge("job", LOG, SEEN, None).problems


def test_a_failed_job_is_a_problem_with_its_reason() -> None:
    """It has ended, though not as it should have."""
    failed = Failed(FinishReason.ERROR, error=ErrorInfo("worker-lost", "Too many."))
    log = numbered(*EVENTS[:2], failed)
    verdict = tell([Seen(float(n), 1, n, event) for n, event in log], log)
    assert verdict.ended
    assert any("worker-lost" in problem for problem in verdict.problems)
