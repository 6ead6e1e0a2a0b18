"""The worker's metrics count what ended, in vLLM's shapes."""

from collections.abc import Callable

import msgspec
import pytest

from common.events import Cancelled, ChoiceEnd, Completed, Ended, Timings, Usage
from common.jobs import FinishReason
from worker.metrics import Metrics

WHOLE = Completed(
    FinishReason.STOP,
    usage=Usage(prompt_tokens=10, completion_tokens=5),
    timings=Timings(queue_s=1.0, prefill_s=0.5, first_token_s=0.75, decode_s=2.0),
)
TOKENLESS = Cancelled(FinishReason.CANCELLED, usage=Usage(prompt_tokens=3))


def observed(*ends: Ended) -> Callable[[str], float | None]:
    """Return how to read a sample after these ends."""
    metrics = Metrics()
    for end in ends:
        metrics.observe(end)
    return lambda name: metrics.registry.get_sample_value(f"headrace_{name}")


def test_ends_are_counted_by_reason() -> None:
    """Each end adds one to its own reason."""
    metrics = Metrics()
    for end in (WHOLE, WHOLE, TOKENLESS):
        metrics.observe(end)
    counts = {
        reason: metrics.registry.get_sample_value(
            "headrace_jobs_ended_total", {"finish_reason": reason}
        )
        for reason in ("stop", "cancelled", "error")
    }
    assert counts == {"stop": 2, "cancelled": 1, "error": None}


def test_the_heartbeat_has_the_same_figures() -> None:
    """Jobs and tokens are also plain numbers."""
    metrics = Metrics()
    metrics.observe(WHOLE)
    metrics.observe(TOKENLESS)
    assert (metrics.jobs_done, metrics.prompt_tokens, metrics.completion_tokens) == (2, 13, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_tokens_total", 10),
        ("generation_tokens_total", 5),
        ("time_to_first_token_seconds_sum", 1.75),
        ("time_per_output_token_seconds_sum", 0.5),
        ("queue_time_seconds_sum", 1.0),
        ("prefill_time_seconds_sum", 0.5),
        ("decode_time_seconds_sum", 2.0),
    ],
)
def test_durations_and_tokens_are_those_of_the_end(name: str, value: float) -> None:
    """First token counts from the acceptance; the time per token leaves the first one out."""
    assert observed(WHOLE)(name) == pytest.approx(value)


def test_several_answers_have_no_pace_of_one() -> None:
    """Their tokens came side by side: the job's time divided by them is nobody's wait."""
    choices = tuple(ChoiceEnd(choice, FinishReason.STOP, True) for choice in range(2))
    read = observed(msgspec.structs.replace(WHOLE, choices=choices))
    assert read("time_per_output_token_seconds_count") == 0
    assert read("time_to_first_token_seconds_count") == 1


def test_a_job_without_tokens_has_no_token_times() -> None:
    """It does not pull the averages to zero."""
    read = observed(TOKENLESS)
    assert read("time_to_first_token_seconds_count") == 0
    assert read("time_per_output_token_seconds_count") == 0
    assert read("queue_time_seconds_count") == 1
