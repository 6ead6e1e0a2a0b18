"""Which deadline ends a job."""

import pytest

from common.deadlines import GRACE_MS, due_ms, is_overdue, passed
from common.jobs import JobSpec


def spec(queue_s: float | None = None, run_s: float | None = None) -> JobSpec:
    """Return a job that has a minute in all."""
    return JobSpec("m", 1, deadline_s=60, queue_deadline_s=queue_s, run_deadline_s=run_s)


@pytest.mark.parametrize(
    ("queue_s", "is_started", "due"),
    [(None, False, 61_000), (5, False, 6_000), (5, True, 61_000), (90, False, 61_000)],
)
def test_the_next_deadline(queue_s: float | None, is_started: bool, due: int) -> None:
    """That for waiting is over with the first start, and no deadline makes another one later."""
    assert due_ms(spec(queue_s), 1_000, 61_000, is_started=is_started) == due


def test_a_job_is_overdue_after_its_workers_grace() -> None:
    """Until then the worker that runs it may end it itself."""
    assert not is_overdue(1_000, 1_000 + GRACE_MS - 1)
    assert is_overdue(1_000, 1_000 + GRACE_MS)


@pytest.mark.parametrize(
    ("job", "queue_s", "type_"),
    [
        (spec(), None, "deadline"),
        (spec(queue_s=5), None, "queue-deadline"),
        (spec(queue_s=90), None, "deadline"),
        (spec(queue_s=5), 2.0, "deadline"),
        (spec(run_s=10), 2.0, "run-deadline"),
        (spec(run_s=10), 55.0, "deadline"),
    ],
)
def test_the_end_names_the_deadline(job: JobSpec, queue_s: float | None, type_: str) -> None:
    """That for waiting, that for running, or that for both."""
    assert passed(job, queue_s).type == type_
