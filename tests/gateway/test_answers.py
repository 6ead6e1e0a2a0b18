"""A job's answers as clients see them."""

import msgspec
import pytest

from common.events import (
    Accepted,
    Cancelled,
    ChoiceEnd,
    Completed,
    Event,
    Reset,
    TokenLogprob,
    Tokens,
)
from common.jobs import FinishReason, JobSpec
from gateway.answers import choice_views
from gateway.schemas import ChoiceView

ONE, TWO = TokenLogprob(1, "a", -1.0), TokenLogprob(2, "b", -2.0)
LOG: list[Event] = [
    Accepted("j", "m"),
    Tokens(0, (), "Once", echo=True),
    Tokens(0, (1,), "a", logprobs=(ONE,)),
    Tokens(0, (2,), "b", choice=1, logprobs=(TWO,)),
]


def test_an_answer_that_goes_on_has_no_end() -> None:
    """Its text is what the log has, behind the prompt, which is sent once for all."""
    views = choice_views(JobSpec("m", 8, n=2), LOG, None)
    assert views == [
        ChoiceView(index=0, text="Oncea", finish_reason=None, is_eos=None),
        ChoiceView(index=1, text="Onceb", finish_reason=None, is_eos=None),
    ]


def test_each_answer_has_its_own_end() -> None:
    """As the job's end says it."""
    choices = (ChoiceEnd(0, FinishReason.STOP, True), ChoiceEnd(1, FinishReason.LENGTH, False))
    end = Completed(FinishReason.STOP, is_eos=True, choices=choices)
    views = choice_views(JobSpec("m", 8, n=2), LOG, end)
    assert [(view.finish_reason, view.is_eos) for view in views] == [
        (FinishReason.STOP, True),
        (FinishReason.LENGTH, False),
    ]


def test_without_ends_of_their_own_they_ended_as_the_job() -> None:
    """A job that was cancelled in the queue has no answers to tell of."""
    views = choice_views(JobSpec("m", 8, n=2), LOG, Cancelled(FinishReason.CANCELLED))
    assert {view.finish_reason for view in views} == {FinishReason.CANCELLED}


@pytest.mark.parametrize("num_alternatives", [0, 5])
def test_logprobs_are_there_where_they_were_asked_for(num_alternatives: int) -> None:
    """Each answer has its own, from the last reset on."""
    views = choice_views(JobSpec("m", 8, n=2, logprobs=num_alternatives), LOG, None)
    assert [view.logprobs for view in views] == [[ONE], [TWO]]
    after = [*LOG, Reset("other model"), LOG[2]]
    views = choice_views(JobSpec("m", 8, n=2, logprobs=num_alternatives), after, None)
    assert [view.logprobs for view in views] == [[ONE], []]
    assert choice_views(JobSpec("m", 8), LOG, None)[0].logprobs is msgspec.UNSET


def test_logprobs_of_the_prompt_come_before_each_answer() -> None:
    """As its text does."""
    log = [*LOG[:2], Tokens(0, (), "", logprobs=(TWO, TWO), echo=True), *LOG[2:]]
    views = choice_views(JobSpec("m", 8, n=2, logprobs=0, echo=True), log, None)
    assert [view.logprobs for view in views] == [[TWO, TWO, ONE], [TWO, TWO, TWO]]
