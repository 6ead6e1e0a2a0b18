"""Forward passes over one sequence at a time. Everything here runs on the engine's thread."""

import time
from typing import Any

import structlog
import torch
from torch import Tensor
from transformers import DynamicCache

from worker.engine.sampler import sample
from worker.engine.sequence import Sequence
from worker.engine.thread import RequestFailed
from worker.model.loading import LoadedModel

_log = structlog.get_logger()

# Prompt tokens per forward pass: many enough to keep the processor busy, few enough that those
# who decode beside it do not wait long for their next token.
PREFILL_CHUNK_LEN = 256


class ModelRunner:
    """Advances sequences through a transformers model. Each owns its KV cache."""

    def __init__(
        self, model: LoadedModel, threads: int = 0, chunk_len: int = PREFILL_CHUNK_LEN
    ) -> None:
        self._network = model.network
        self._config = model.network.config
        self._device = model.device
        # CPU threads of a forward pass; 0 is torch's own choice.
        self._threads = threads
        self._chunk_len = chunk_len

    def start(self) -> None:
        """Prepare the thread that calls ``advance``; the number of threads is set per thread."""
        if self._threads:
            torch.set_num_threads(self._threads)

    def advance(self, sequence: Sequence) -> int | None:
        """Let the model see the next tokens of the sequence.

        Returns the token that follows once it has seen all, else ``None``. Raises
        ``RequestFailed`` where others are unharmed.
        """
        started = time.perf_counter()
        is_prefill = sequence.is_prefilling
        try:
            with torch.inference_mode():
                return self._advance(sequence)
        except torch.AcceleratorError:
            # The device has lost its state, and with it everybody's cache.
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            _log.exception("forward_failed", request=sequence.id)
            detail = str(error).strip().partition("\n")[0]
            raise RequestFailed("engine-error", f"The forward pass failed: {detail}") from error
        finally:
            if is_prefill:
                sequence.prefill_s += time.perf_counter() - started

    def _advance(self, sequence: Sequence) -> int | None:
        chunk = sequence.ids[sequence.seen_len : sequence.seen_len + self._chunk_len]
        logits = self._forward(sequence, chunk)
        sequence.seen_len += len(chunk)
        if sequence.seen_len < len(sequence.ids):
            return None
        if not bool(torch.isfinite(logits).all()):
            raise RequestFailed(
                "non-finite-logits",
                "The model's output has infinities or NaN; the job cannot go on.",
            )
        return sample(logits, sequence.sampling, sequence.position)

    def _forward(self, sequence: Sequence, chunk: list[int]) -> Tensor:
        """Return the logits after the last token of the chunk, in float32."""
        if sequence.cache is None:
            sequence.cache = DynamicCache(config=self._config)
        output: Any = self._network(
            input_ids=torch.tensor([chunk], device=self._device),
            past_key_values=sequence.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[0, -1].float()
        return logits
