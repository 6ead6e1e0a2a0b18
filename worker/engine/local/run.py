"""One request in the local engine, from the follower's side: tokens become answers."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from common.events import Alternative, TokenLogprob
from common.jobs import FinishReason
from worker.engine.local.made import PromptLogprobs, Token
from worker.engine.protocol import Delta, Finished, Output, Prefilled, Refused, Request, Sink

if TYPE_CHECKING:
    from worker.engine.answers import Answers
    from worker.engine.local.intake import Prepared
    from worker.engine.local.tokenizer import Tokenizer


@dataclass(slots=True, eq=False)
class Run:
    """A request that has not ended. Pure: what it returns is said by its owner."""

    request: Request
    sink: Sink
    # Set when the prompt is tokenised.
    answers: "Answers | None" = None
    sequence_ids: tuple[str, ...] = ()
    _prompt_ids: tuple[int, ...] = ()
    _ids: list[int] = field(default_factory=list)  # of the first answer
    _has_prefilled: bool = False
    _stopped: set[int] = field(default_factory=set)  # answers that the thread was told of

    def open(self, prepared: "Prepared") -> list[Output]:
        """Begin; return what can be said before the model has made anything."""
        self.answers = prepared.answers
        self.sequence_ids = tuple(sequence.id for sequence in prepared.sequences)
        self._prompt_ids = prepared.prompt_ids
        self._ids = list(self.request.emitted[0].ids)
        self._stopped = {answer.choice for answer in prepared.answers.all if answer.end}
        said: list[Output] = [prepared.echo] if prepared.echo is not None else []
        # Text that an earlier attempt had made and not said.
        deltas = [answer.take() for answer in prepared.answers.all]
        return said + [delta for delta in deltas if delta.text]

    def take(
        self,
        choice: int,
        output: Prefilled | Refused | Token | PromptLogprobs,
        tokenizer: "Tokenizer",
    ) -> list[Output]:
        """Return what the follower hears of a step."""
        match output:
            case Refused():
                return [output]
            case Prefilled():
                is_first, self._has_prefilled = not self._has_prefilled, True
                return [output] if is_first else []
            case PromptLogprobs(tokens):
                scored = tuple(_scored(token, tokenizer) for token in tokens)
                return [Delta((), "", logprobs=scored, echo=True)]
            case Token():
                return self._take_token(choice, output, tokenizer)

    @property
    def end(self) -> Finished | None:
        """The end of the request, once all answers have theirs."""
        end = self.answers.end if self.answers is not None else None
        return self._with_sequence(end) if end is not None else None

    def cancelled(self) -> Finished:
        """Return the end of a request that was cancelled."""
        if self.answers is None:
            return Finished(FinishReason.CANCELLED)
        return self.answers.cancelled()

    def take_stopped(self) -> list[str]:
        """Return the sequences whose answers have ended since the last call."""
        if self.answers is None:
            return []
        ended = {answer.choice for answer in self.answers.all if answer.end is not None}
        stopped = ended - self._stopped
        self._stopped |= stopped
        return [f"{self.request.id}#{choice}" for choice in sorted(stopped)]

    def _take_token(self, choice: int, token: Token, tokenizer: "Tokenizer") -> list[Output]:
        assert self.answers is not None
        logprobs = (_scored(token, tokenizer),) if token.logprobs is not None else ()
        delta = self.answers.all[choice].take((token.id,), logprobs)
        if choice == 0:
            self._ids += delta.ids
        return [delta] if delta.ids or delta.text else []

    def _with_sequence(self, end: Finished) -> Finished:
        if self.request.spec.prompt_id is None:
            return end
        return replace(end, sequence=(*self._prompt_ids, *self._ids))


def _scored(token: Token, tokenizer: "Tokenizer") -> TokenLogprob:
    raw = token.logprobs
    assert raw is not None
    top = tuple(
        Alternative(token_id, tokenizer.text_of(token_id), logprob)
        for token_id, logprob in zip(raw.top_ids, raw.top_logprobs, strict=True)
    )
    return TokenLogprob(token.id, tokenizer.text_of(token.id), raw.logprob, top)
