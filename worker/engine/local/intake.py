"""What becomes of a request before it reaches the model. Runs off the engine's thread."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from jinja2 import TemplateError

from common.jobs import JobSpec, Priority
from worker.engine.answer import TakeoverMismatch
from worker.engine.answers import Answers, rest_of_echo
from worker.engine.local.sampling import SamplerState
from worker.engine.local.sequence import Sequence
from worker.engine.local.tokenizer import Tokenizer
from worker.engine.protocol import UNRESUMABLE, Delta, Refused, Request
from worker.kv.chain import BlockKey, keys_of, root
from worker.kv.table import Table

_RANKS = {priority: rank for rank, priority in enumerate(Priority)}
_MAX_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and its cache can take.

    Token IDs are below ``vocab_len``. ``cache_tokens`` is the room for one sequence.
    ``fingerprint`` and ``dtype`` tell models apart whose KV tensors must not meet.
    """

    context_len: int
    vocab_len: int
    eos_ids: frozenset[int]
    cache_tokens: int
    block_tokens: int
    fingerprint: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that the model can take.

    ``sequences`` are for the model, one per answer that has not ended; ``answers`` and ``echo``,
    the rest of the prompt's text that was asked for, are for the follower. ``on_disk`` names the
    blocks that are to be read before.
    """

    prompt_ids: tuple[int, ...]
    sequences: tuple[Sequence, ...]
    answers: Answers
    echo: Delta | None
    on_disk: tuple[BlockKey, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request's prompt in token IDs, behind ``base``; ``chain`` names its blocks (``Table``)."""

    base: tuple[int, ...]
    ids: list[int]
    chain: list[bytes]


class Intake:
    """Tokenises and validates requests. Its methods may run on several threads at once."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        # Made for ``table``, and asked for again by ``prepare``; by job.
        self._remembered: OrderedDict[str, _Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, request: Request, order: int) -> Prepared | Refused:
        """Return what the engine needs, or why it cannot take the request.

        ``order`` is the request's place among those that wait for the model.
        """
        refusal = self._refuse_spec(request.spec)
        if refusal is not None:
            return refusal
        try:
            prompt = self._prompt(request)
        except TemplateError as error:
            return Refused("messages-refused", f"The model's chat template says: {error}")
        refusal = self._refuse_ids(request, prompt.ids)
        if refusal is not None:
            return refusal
        spec, emitted = request.spec, request.emitted
        try:
            answers = Answers(spec, self._tokenizer.step, self._limits.eos_ids, emitted)
            echo = rest_of_echo(spec, self._prompt_text(spec, prompt.ids), emitted)
        except TakeoverMismatch as error:
            return Refused(UNRESUMABLE, str(error))
        sequences = self._sequences(request, order, prompt, answers)
        return Prepared(tuple(prompt.ids), sequences, answers, echo)

    def table(self, request: Request) -> tuple[Table, list[int]]:
        """Return the names of the prompt's blocks, and its IDs with what was emitted after them.

        Raises whatever ``prepare`` would answer with a refusal.
        """
        prompt = self._prompt(request)
        with self._lock:
            self._remembered[_job_id(request)] = prompt
            while len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        emitted_ids = request.emitted[0].ids
        ids = [*prompt.ids, *emitted_ids]
        chain = self._chain(request.tenant, ids) if emitted_ids else [*prompt.chain]
        return Table(chain), ids

    def table_of(self, tenant: str) -> Table:
        """Return an empty table of this tenant; its blocks are named when they are asked for."""
        return Table([self._root(tenant)])

    def _prompt(self, request: Request) -> _Prompt:
        """Return the prompt; the one that was remembered serves once."""
        with self._lock:
            known = self._remembered.pop(_job_id(request), None)
        if known is not None and known.base == request.base:
            return known
        ids = self._tokenizer.encode(request.spec, request.base)
        return _Prompt(request.base, ids, self._chain(request.tenant, ids))

    def _chain(self, tenant: str, ids: list[int]) -> list[bytes]:
        first = self._root(tenant)
        return [first, *keys_of(first, ids, self._limits.block_tokens)]

    def _root(self, tenant: str) -> BlockKey:
        limits = self._limits
        return root(tenant, limits.fingerprint, limits.dtype, limits.block_tokens)

    def _prompt_text(self, spec: JobSpec, prompt_ids: list[int]) -> str:
        if not spec.echo:
            return ""
        return spec.prompt if spec.prompt is not None else self._tokenizer.decode(prompt_ids)

    def _sequences(
        self, request: Request, order: int, prompt: _Prompt, answers: Answers
    ) -> tuple[Sequence, ...]:
        made: list[Sequence] = []
        for answer in answers.unended:
            sequence = self._sequence(request, order, prompt, answer.choice)
            if made:
                sequence.leader = made[0]
                made[0].has_followers = True
            made.append(sequence)
        return tuple(made)

    def _sequence(self, request: Request, order: int, prompt: _Prompt, choice: int) -> Sequence:
        spec = request.spec
        emitted_ids = request.emitted[choice].ids
        stop_ids = frozenset(spec.stop_token_ids)
        end_ids = stop_ids if spec.ignore_eos else stop_ids | self._limits.eos_ids
        return Sequence(
            id=f"{request.id}#{choice}",
            order=order,
            rank=_RANKS[spec.priority],
            ids=[*prompt.ids, *emitted_ids],
            prompt_len=len(prompt.ids),
            max_tokens=spec.max_tokens,
            end_ids=end_ids,
            min_tokens=spec.min_tokens,
            sampler=SamplerState(
                spec.sampling,
                prompt_ids=prompt.ids,
                generated_ids=emitted_ids,
                vocab_len=self._limits.vocab_len,
                banned_before_min=end_ids,
                min_tokens=spec.min_tokens,
                num_logprobs=spec.logprobs,
                choice=choice,
            ),
            table=Table([*prompt.chain]),
            is_kept=spec.prompt_id is not None,
            wants_prompt_logprobs=spec.echo and spec.logprobs is not None and choice == 0,
        )

    def _refuse_spec(self, spec: JobSpec) -> Refused | None:
        has_messages = bool(spec.messages) or isinstance(spec.append, tuple)
        if has_messages and not self._tokenizer.has_chat_template:
            return Refused(
                "no-chat-template", "The model has no chat template; send a prompt, not messages."
            )
        if spec.max_tokens >= self._limits.context_len:
            return Refused(
                "prompt-too-long",
                f"max_tokens ({spec.max_tokens}) alone fills the model's context of "
                f"{self._limits.context_len} tokens; lower it.",
            )
        return None

    def _refuse_ids(self, request: Request, prompt_ids: list[int]) -> Refused | None:
        if not prompt_ids:
            return Refused("prompt-empty", "The prompt has no tokens; send some text.")
        return self._refuse_length(request, prompt_ids) or self._refuse_foreign(request, prompt_ids)

    def _refuse_length(self, request: Request, prompt_ids: list[int]) -> Refused | None:
        max_tokens, limits = request.spec.max_tokens, self._limits
        wanted = len(prompt_ids) + max_tokens
        said = f"{len(prompt_ids)} prompt tokens and max_tokens {max_tokens} exceed"
        advice = "shorten the prompt or lower max_tokens."
        if wanted > limits.context_len:
            detail = f"{said} the model's context of {limits.context_len} tokens; {advice}"
            return Refused("prompt-too-long", detail)
        if wanted > limits.cache_tokens:
            detail = f"{said} the worker's KV cache of {limits.cache_tokens} tokens; {advice}"
            return Refused("prompt-too-long", detail)
        return None

    def _refuse_foreign(self, request: Request, prompt_ids: list[int]) -> Refused | None:
        # On a GPU a foreign ID would not fail its own request but the whole device.
        if max(prompt_ids) >= self._limits.vocab_len:
            return Refused("prompt-refused", "The prompt has tokens that the model does not know.")
        if any(max(one.ids, default=0) >= self._limits.vocab_len for one in request.emitted):
            return Refused(UNRESUMABLE, "Another model made the logged tokens.")
        spec = request.spec
        foreign = [
            token_id
            for token_id in (*spec.stop_token_ids, *spec.sampling.logit_bias)
            if token_id >= self._limits.vocab_len
        ]
        if foreign:
            detail = (
                f"The model has no token {foreign[0]}; stop_token_ids and logit_bias take IDs "
                f"below {self._limits.vocab_len}."
            )
            return Refused("token-unknown", detail)
        return None


def _job_id(request: Request) -> str:
    """Return the job of a request: its attempts and probes have names of their own."""
    return request.id.partition(":")[0]
