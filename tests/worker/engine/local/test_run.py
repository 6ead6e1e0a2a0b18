"""A request from its follower's side: tokens in, what is said out."""

from typing import Any

from common.emitted import Emitted
from common.jobs import FinishReason
from tests.worker.engine.local.engines import make_spec
from tests.worker.engine.local.test_intake import IDS, LIMITS, PROMPT, TOKENIZER
from tests.worker.engine.recorder import FRESH
from worker.engine.local.intake import Intake, Prepared
from worker.engine.local.made import PromptLogprobs, Token
from worker.engine.local.run import Run
from worker.engine.local.sampling import RawLogprobs
from worker.engine.protocol import Delta, Finished, Output, Prefilled, Refused, Request

PREFILLED = Prefilled(3, 0, 0.5)
WORDS = TOKENIZER.encode(make_spec(" river wheel grain stone"))


def _open(*emitted: Emitted, **options: Any) -> tuple[Run, list[Output]]:
    spec = make_spec(PROMPT, **options)
    request = Request("j:1", spec, emitted or (FRESH,) * spec.n)
    run = Run(request, lambda _output: None)
    prepared = Intake(TOKENIZER, LIMITS).prepare(request, 0)
    assert isinstance(prepared, Prepared)
    return run, run.open(prepared)


def _say(run: Run, *ids: int, choice: int = 0) -> list[Output]:
    return [said for id_ in ids for said in run.take(choice, Token(id_), TOKENIZER)]


def test_tokens_become_text_up_to_the_end() -> None:
    """What comes after it is not said."""
    run, said = _open(max_tokens=3, prompt_id="chat")
    assert not said
    assert run.sequence_ids == ("j:1#0",)
    assert run.take(0, PREFILLED, TOKENIZER) == [PREFILLED]
    assert run.end is None
    said = _say(run, *WORDS[:4])
    assert [delta.ids for delta in said if isinstance(delta, Delta)] == [(w,) for w in WORDS[:3]]
    sequence = (*IDS, *WORDS[:3])
    assert run.end == Finished(FinishReason.LENGTH, sequence=sequence)


def test_without_a_prompt_id_nobody_wants_the_sequence() -> None:
    """It is not carried to the end."""
    run, _ = _open(max_tokens=1)
    _say(run, WORDS[0])
    assert run.end == Finished(FinishReason.LENGTH)


def test_what_earlier_attempts_made_is_part_of_the_sequence() -> None:
    """And their text that was not sent is said first."""
    run, said = _open(Emitted(tuple(WORDS[:2]), ""), max_tokens=3, prompt_id="chat")
    assert said == [Delta((), TOKENIZER.decode(WORDS[:2]))]
    _say(run, WORDS[2])
    assert run.end is not None
    assert run.end.sequence == (*IDS, *WORDS[:3])


def test_an_attempt_that_died_before_its_end_is_over() -> None:
    """No sequence is made for it."""
    run, _ = _open(Emitted(tuple(WORDS[:2]), TOKENIZER.decode(WORDS[:2])), max_tokens=2)
    assert run.end == Finished(FinishReason.LENGTH)
    assert run.sequence_ids == ()
    assert run.take_stopped() == []


def test_a_stop_string_stops_the_models_sequence_once() -> None:
    """The thread cannot know of it; the surplus is dropped."""
    run, _ = _open(stop=(" wheel",), n=2)
    for word in WORDS:
        _say(run, word, choice=1)
        if run.answers is not None and run.answers.all[1].end:
            break
    assert run.take_stopped() == ["j:1#1"]
    assert run.take_stopped() == []
    assert _say(run, *WORDS, choice=1) == []
    assert run.end is None


def test_the_prompt_is_prefilled_once() -> None:
    """Of several answers only the first word of it is passed on."""
    run, _ = _open(n=2)
    assert run.take(1, PREFILLED, TOKENIZER) == [PREFILLED]
    assert run.take(0, PREFILLED, TOKENIZER) == []


def test_a_refusal_is_passed_on() -> None:
    """Its owner ends the request with it."""
    run, _ = _open()
    refused = Refused("engine-error", "no luck")
    assert run.take(0, refused, TOKENIZER) == [refused]


def test_logprobs_get_their_texts() -> None:
    """Those of the prompt and those of the answer."""
    run, _ = _open(logprobs=1, echo=True)
    token = Token(WORDS[0], RawLogprobs(-0.5, [WORDS[1]], [-0.25]))
    (delta,) = run.take(0, token, TOKENIZER)
    (echo,) = run.take(0, PromptLogprobs((token,)), TOKENIZER)
    assert isinstance(delta, Delta)
    assert isinstance(echo, Delta)
    assert (echo.echo, echo.text, echo.ids) == (True, "", ())
    assert delta.logprobs == echo.logprobs
    (one,) = delta.logprobs
    assert (one.id, one.text, one.logprob) == (WORDS[0], TOKENIZER.text_of(WORDS[0]), -0.5)
    assert [(other.id, other.text, other.logprob) for other in one.top] == [
        (WORDS[1], TOKENIZER.text_of(WORDS[1]), -0.25)
    ]


def test_cancelled_before_it_was_tokenised_it_has_no_answers() -> None:
    """And afterwards those that have ended keep their ends."""
    fresh = Run(Request("j:1", make_spec()), lambda _output: None)
    assert fresh.cancelled() == Finished(FinishReason.CANCELLED)
    assert fresh.end is None
    assert fresh.take_stopped() == []
    run, _ = _open(n=2, max_tokens=1)
    _say(run, WORDS[0], choice=1)
    reasons = [choice.finish_reason for choice in run.cancelled().choices]
    assert reasons == [FinishReason.CANCELLED, FinishReason.LENGTH]
