"""One step of the engine: plan, run the model, choose tokens. Runs on the engine's thread."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Many

import structlog
import torch
from torch import Tensor

from worker.engine.local.batching import make_batch, num_rows
from worker.engine.local.made import Made, PromptLogprobs, Token
from worker.engine.local.sampling import Sampled, Sampler
from worker.engine.local.sampling.logprobs import score
from worker.engine.local.scheduler import Scheduler, Slice
from worker.engine.local.sequence import Sequence
from worker.engine.protocol import Prefilled, Refused
from worker.kv.cache import KvCache
from worker.model.batch import Network

_log = structlog.get_logger()

_NOT_FINITE = Refused(
    "non-finite-logits", "The model's output has infinities or NaN; the job cannot go on."
)


class EngineCore:
    """The scheduler, the KV cache, the network and the sampler, step by step.

    A sequence that has ended, by a token or by a failure, is forgotten without being removed.
    """

    def __init__(
        self,
        network: Network,
        cache: KvCache,
        scheduler: Scheduler,
        device: torch.device,
        threads: int = 0,
    ) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self._network = network
        self._sampler = Sampler()
        self._device = device
        self._threads = threads
        # Seconds spent in forward passes and sampling, and tokens that were prefilled in how long.
        self.model_s = 0.0
        self.prefill_tokens = 0
        self.prefill_s = 0.0

    def start(self) -> None:
        """Prepare the calling thread, the only one that calls ``step``."""
        if self._threads:
            torch.set_num_threads(self._threads)

    def step(self, meanwhile: Callable[[], object] = lambda: None) -> list[Made]:
        """Let every planned sequence get on; return what became of them.

        ``meanwhile`` is called when there is nothing left to do but the model's part. Raises only
        what ends the engine.
        """
        with torch.inference_mode():
            slices = self.scheduler.plan()
            assert slices, "sequences wait, and none of them can run"
            return self._run(slices, meanwhile)

    def _run(self, slices: Many[Slice], meanwhile: Callable[[], object]) -> list[Made]:
        """Run the slices; where they fail together, find the one that fails alone."""
        started = time.perf_counter()
        try:
            batch = make_batch(slices, self.cache.block_tokens, self._device)
            meanwhile()
            logits = self._network.forward(batch)
            return self._settle(slices, logits, started)
        except torch.AcceleratorError:
            raise  # the device has lost its state, and with it everybody's cache
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            if len(slices) == 1:
                return [self._fail(slices[0], error)]
            _log.warning("step_failed", sequences=len(slices), error=_first_line(error))
        # What a failed pass wrote is written again: the same tokens to the same places.
        half = len(slices) // 2
        return self._run(slices[:half], meanwhile) + self._run(slices[half:], meanwhile)

    def _settle(self, slices: Many[Slice], logits: Tensor, started: float) -> list[Made]:
        last = [part.sequence for part in slices if part.is_last]
        scored: list[Made] = []
        if len(logits) > len(last):
            parts = torch.split(logits, [num_rows(part) for part in slices])
            scored = self._score_prompts(slices, parts)
            ends = [rows[-1] for part, rows in zip(slices, parts, strict=True) if part.is_last]
            logits = torch.stack(ends) if ends else logits[:0]
        sampled = self._sampler.sample(logits, [sequence.sampler for sequence in last])
        self._account(slices, time.perf_counter() - started)
        # From here on nothing fails: a step that is run again must find everything as it was.
        made: list[Made] = scored
        for part in slices:
            part.sequence.scored_len = max(part.sequence.scored_len, part.end)
            self.cache.advance(part.sequence.table, part.sequence.ids, part.end)
        for number, sequence in enumerate(last):
            made += self._append(sequence, sampled, number)
        return made

    def _score_prompts(self, slices: Many[Slice], parts: Many[Tensor]) -> list[Made]:
        made: list[Made] = []
        for part, logits in zip(slices, parts, strict=True):
            sequence = part.sequence
            start = max(part.start, sequence.scored_len)
            end = min(part.end, sequence.prompt_len - 1)
            if sequence.wants_prompt_logprobs and start < end:
                ids = sequence.ids[start + 1 : end + 1]
                rows = logits[start - part.start : end - part.start]
                raw = score(rows, ids, sequence.sampler.num_logprobs or 0)
                tokens = tuple(Token(id_, one) for id_, one in zip(ids, raw, strict=True))
                made.append((sequence.id, PromptLogprobs(tokens)))
        return made

    def _append(self, sequence: Sequence, sampled: Sampled, number: int) -> list[Made]:
        made: list[Made] = []
        if not sequence.has_prefilled:
            made.append((sequence.id, self._prefilled(sequence)))
        if not sampled.is_finite[number]:
            self.scheduler.remove(sequence.id, keep=False)
            return [*made, (sequence.id, _NOT_FINITE)]
        token_id = sampled.ids[number]
        sequence.ids.append(token_id)
        sequence.sampler.push(token_id)
        if sequence.is_over:
            self.scheduler.end(sequence.id)
        return [*made, (sequence.id, Token(token_id, sampled.logprobs[number]))]

    def _prefilled(self, sequence: Sequence) -> Prefilled:
        sequence.has_prefilled = True
        if sequence.has_followers:
            self.cache.share_tail(sequence.table, sequence.ids)
        return Prefilled(sequence.prompt_len, sequence.cached_len or 0, sequence.prefill_s)

    def _fail(self, part: Slice, error: Exception) -> Made:
        _log.error("forward_failed", request=part.sequence.id, exc_info=error)
        self.scheduler.remove(part.sequence.id, keep=False)
        detail = f"The forward pass failed: {_first_line(error)}"
        return part.sequence.id, Refused("engine-error", detail)

    def _account(self, slices: Many[Slice], took_s: float) -> None:
        self.model_s += took_s
        num_tokens = sum(part.length for part in slices)
        for part in slices:
            # Everybody's share of the step, by tokens.
            share_s = took_s * part.length / num_tokens
            if part.start < part.sequence.prefill_len:
                part.sequence.prefill_s += share_s
            if part.length > 1:
                self.prefill_tokens += part.length
                self.prefill_s += share_s


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
