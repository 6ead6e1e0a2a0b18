"""How the benches count silences and recoveries."""

import pytest

from bench.fleet.clients import Seen
from bench.fleet.gaps import Resumes, longest_silence, recovery
from common.events import Accepted, Completed, Event, Retrying, Started, Tokens
from common.jobs import FinishReason

END = Completed(FinishReason.LENGTH)


def token(index: int) -> Tokens:
    """Return the event of one token."""
    return Tokens(index, (1,), "a")


def story(*events: tuple[float, int, Event]) -> list[Seen]:
    """Return (time, connection, event) as a follower keeps them."""
    return [Seen(at, connection, n, event) for n, (at, connection, event) in enumerate(events)]


TAKEN_OVER = story(
    (0.0, 1, Accepted("j", "m")),
    (0.1, 1, Started("a", 1)),
    (1.0, 1, token(0)),
    (2.0, 1, token(1)),
    (3.1, 1, token(2)),  # was on its way when the worker died at 3
    (8.0, 2, Retrying("worker_lost")),
    (8.1, 2, Started("b", 2)),
    (8.6, 2, token(3)),
    (9.6, 2, END),
)
FAULT_AT = 3.0


def test_a_silence_is_between_two_token_events() -> None:
    """Other events do not break it, and what lies before the first token is none."""
    assert longest_silence(TAKEN_OVER) == pytest.approx(5.5)
    assert longest_silence(TAKEN_OVER[:3]) == 0
    assert longest_silence([]) == 0


@pytest.mark.parametrize(
    ("resumes", "seconds"),
    [
        (Resumes.NEXT_WORKER, 5.6),
        (Resumes.NEXT_CONNECTION, 5.0),
        (Resumes.LONGEST_SILENCE, 5.6),
    ],
)
def test_a_recovery_ends_with_what_is_new(resumes: Resumes, seconds: float) -> None:
    """A token that was on its way at the fault is no recovery."""
    assert recovery(TAKEN_OVER, FAULT_AT, resumes) == pytest.approx(seconds)


@pytest.mark.parametrize("resumes", Resumes)
def test_a_stream_that_never_goes_on_has_no_recovery(resumes: Resumes) -> None:
    """Nothing that came before the fault is taken for one."""
    assert recovery(TAKEN_OVER[:4], FAULT_AT, resumes) is None


def test_an_end_is_a_recovery_too() -> None:
    """A job whose last token was logged before its worker died has only its end to come."""
    ended = [*TAKEN_OVER[:7], Seen(8.3, 2, 7, END)]
    assert recovery(ended, FAULT_AT, Resumes.NEXT_WORKER) == pytest.approx(5.3)
