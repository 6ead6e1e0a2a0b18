"""The answers of a job as clients see them. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from common.emitted import emitted_choices
from common.events import ChoiceEnd, Ended, Event, Reset, TokenLogprob, Tokens
from common.jobs import JobSpec
from gateway.schemas import ChoiceView


def choice_views(spec: JobSpec, events: Sequence[Event], end: Ended | None) -> list[ChoiceView]:
    """Return the answers as far as they are logged, with the prompt before each if it is echoed."""
    answers = emitted_choices(events, spec.n)
    prompt = answers[0].echo  # it is sent once
    return [
        ChoiceView(
            index=index,
            text=prompt + answer.text,
            finish_reason=choice_end.finish_reason if choice_end else None,
            is_eos=choice_end.is_eos if choice_end else None,
            logprobs=msgspec.UNSET if spec.logprobs is None else _logprobs(events, index),
        )
        for index, answer in enumerate(answers)
        for choice_end in [_end_of(index, end)]
    ]


def _end_of(index: int, end: Ended | None) -> ChoiceEnd | None:
    """Return how an answer ended: as the job did, unless its end tells of it apart."""
    if end is None:
        return None
    apart = [choice for choice in end.choices if choice.choice == index]
    return apart[0] if apart else ChoiceEnd(index, end.finish_reason, end.is_eos)


def _logprobs(events: Iterable[Event], index: int) -> list[TokenLogprob]:
    """Return those of an answer, behind those of an echoed prompt, as its text is."""
    found: list[TokenLogprob] = []
    for event in events:
        if isinstance(event, Reset):
            found = []
        elif isinstance(event, Tokens) and (event.echo or event.choice == index):
            found += event.logprobs
    return found
