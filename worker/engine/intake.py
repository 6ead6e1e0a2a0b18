"""What becomes of a request before it reaches the model. Runs off the engine's thread."""

from dataclasses import dataclass

from jinja2 import TemplateError

from common.jobs import JobSpec
from worker.engine.answer import Answer, TakeoverMismatch
from worker.engine.protocol import UNRESUMABLE, Refused, Request
from worker.engine.sequence import Sequence
from worker.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can take. Token IDs are below ``vocab_len``."""

    context_len: int
    vocab_len: int
    eos_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that the model can take: a sequence for the model, an answer for the follower."""

    sequence: Sequence
    answer: Answer


class Intake:
    """Tokenises and validates requests. Its methods may run on several threads at once."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def prepare(self, request: Request, order: int) -> Prepared | Refused:
        """Return what the engine needs, or why it cannot take the request.

        ``order`` is the request's place among those that wait for the model.
        """
        spec = request.spec
        refusal = self._refuse_spec(spec)
        if refusal is not None:
            return refusal
        try:
            prompt_ids = self._tokenizer.encode(spec)
        except TemplateError as error:
            return Refused("messages-refused", f"The model's chat template says: {error}")
        refusal = self._refuse_ids(request, prompt_ids)
        if refusal is not None:
            return refusal
        try:
            answer = Answer(spec, self._tokenizer.step(), self._limits.eos_ids, request.emitted[0])
        except TakeoverMismatch as error:
            return Refused(UNRESUMABLE, str(error))
        return Prepared(self._sequence(request, order, prompt_ids), answer)

    def _sequence(self, request: Request, order: int, prompt_ids: list[int]) -> Sequence:
        return Sequence(
            id=request.id,
            order=order,
            ids=[*prompt_ids, *request.emitted[0].ids],
            prompt_len=len(prompt_ids),
            max_tokens=request.spec.max_tokens,
            eos_ids=self._limits.eos_ids,
            sampling=request.spec.sampling,
        )

    def _refuse_spec(self, spec: JobSpec) -> Refused | None:
        context_len = self._limits.context_len
        if not spec.prompt and not spec.messages:
            return Refused("prompt-empty", "The prompt is empty; send at least one character.")
        if spec.messages and not self._tokenizer.has_chat_template:
            return Refused(
                "no-chat-template", "The model has no chat template; send a prompt, not messages."
            )
        if spec.max_tokens >= context_len:
            return Refused(
                "prompt-too-long",
                f"max_tokens ({spec.max_tokens}) alone fills the model's context of {context_len} "
                "tokens; lower it.",
            )
        return None

    def _refuse_ids(self, request: Request, prompt_ids: list[int]) -> Refused | None:
        max_tokens, context_len = request.spec.max_tokens, self._limits.context_len
        if not prompt_ids:
            return Refused("prompt-empty", "The prompt has no tokens; send some text.")
        if len(prompt_ids) + max_tokens > context_len:
            return Refused(
                "prompt-too-long",
                f"{len(prompt_ids)} prompt tokens and max_tokens {max_tokens} exceed the model's "
                f"context of {context_len} tokens; shorten the prompt or lower max_tokens.",
            )
        # On a GPU a foreign ID would not fail its own request but the whole device.
        if max(prompt_ids) >= self._limits.vocab_len:
            return Refused("prompt-refused", "The prompt has tokens that the model does not know.")
        if max(request.emitted[0].ids, default=0) >= self._limits.vocab_len:
            return Refused(UNRESUMABLE, "Another model made the logged tokens.")
        return None
