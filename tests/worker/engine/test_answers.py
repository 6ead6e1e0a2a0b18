"""Several answers to one request: fed apart, ended together."""

import pytest

from common.emitted import NOTHING, Emitted
from common.events import ChoiceEnd
from common.jobs import FinishReason, JobSpec
from tests.worker.engine.recorder import CANCELLED, EOS
from worker.engine.answer import TakeoverMismatch
from worker.engine.answers import Answers, rest_of_echo
from worker.engine.protocol import Delta, Finished
from worker.engine.text import byte_step

EOS_ID = 256
HI = tuple(b"hi")


def _make_answers(n: int, *emitted: Emitted) -> Answers:
    spec = JobSpec("m", 3, prompt="p", n=n)
    return Answers(spec, byte_step, frozenset({EOS_ID}), emitted or (NOTHING,) * n)


def test_the_last_end_is_the_end_of_all() -> None:
    """The request ends as its first answer did, and says how each of them did."""
    answers = _make_answers(2)
    answers.all[0].take((*HI, EOS_ID))
    assert (answers.end, answers.unended) == (None, [answers.all[1]])
    assert answers.all[1].take(b"hello") == Delta(tuple(b"hel"), "hel", choice=1)
    ends = (ChoiceEnd(0, FinishReason.STOP, True), ChoiceEnd(1, FinishReason.LENGTH, False))
    assert answers.end == Finished(FinishReason.STOP, is_eos=True, choices=ends)


def test_a_single_answer_has_no_choices() -> None:
    """Its end is the request's, cancelled or not."""
    answers = _make_answers(1)
    assert answers.cancelled() == CANCELLED
    answers.all[0].take((EOS_ID,))
    assert answers.end == EOS


def test_a_cancel_leaves_the_ends_that_were_reached() -> None:
    """The others are cancelled, and so is the request."""
    answers = _make_answers(2)
    answers.all[1].take((EOS_ID,))
    ends = (ChoiceEnd(0, FinishReason.CANCELLED, False), ChoiceEnd(1, FinishReason.STOP, True))
    assert answers.cancelled() == Finished(FinishReason.CANCELLED, choices=ends)


def test_each_answer_goes_on_where_it_was() -> None:
    """Another attempt's tokens belong to one answer each."""
    answers = _make_answers(3, Emitted(HI, "hi"), NOTHING, Emitted((*HI, EOS_ID), "hi"))
    assert [answer.num_ids for answer in answers.all] == [2, 0, 3]
    assert answers.unended == list(answers.all[:2])


def test_the_prompt_is_sent_once() -> None:
    """Before any token, and after a takeover only what is missing of it."""
    spec = JobSpec("m", 3, prompt="p", echo=True, n=2)
    assert rest_of_echo(spec, "Once", (NOTHING, NOTHING)) == Delta((), "Once", echo=True)
    assert rest_of_echo(spec, "Once", (Emitted(echo="On"), NOTHING)) == Delta((), "ce", echo=True)
    assert rest_of_echo(spec, "Once", (Emitted(echo="Once"), NOTHING)) is None
    assert rest_of_echo(JobSpec("m", 3, prompt="p"), "Once", (NOTHING,)) is None


def test_another_prompt_than_was_sent_is_a_mismatch() -> None:
    """An echo that does not begin with what readers have cannot go on."""
    spec = JobSpec("m", 3, prompt="p", echo=True)
    with pytest.raises(TakeoverMismatch):
        rest_of_echo(spec, "Once", (Emitted(echo="Two"),))
