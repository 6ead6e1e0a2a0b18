"""llama.cpp through its batch functions: every step decodes one token of all sequences.

llama-cpp-python's own ``Llama`` runs one request after the other, so it is not used. Threads are
chosen by a short trial at the start: a batch of prompts and some steps of decoding for each number.
"""

import os
import time
from collections.abc import Iterable
from typing import Any

import llama_cpp as lib
import numpy as np

from bench.engine.contenders.line import Answer, Ask, Clock, Plan, Run, serve, warm_up

BATCH_TOKENS = 512
TRIAL_TOKENS = 12
NUM_TRIALS = 3


class Context:
    """One llama.cpp context with ``capacity`` sequences."""

    def __init__(self, plan: Plan) -> None:
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.use_mmap = False  # packed weights for this processor need their own memory
        self._model = lib.llama_model_load_from_file(plan.gguf.encode(), model_params)
        self._num_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._context = lib.llama_init_from_model(self._model, self._params(plan))
        self._batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)

    def _params(self, plan: Plan) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = plan.capacity * plan.max_len
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = plan.capacity
        params.kv_unified = plan.options.get("kv_unified", False)
        params.no_perf = True
        return params

    def use_threads(self, count: int) -> None:
        """Set the threads for single tokens and for batches."""
        lib.llama_set_n_threads(self._context, count, count)

    def clear(self, sequence: int | None = None) -> None:
        """Forget a sequence, or all."""
        memory = lib.llama_get_memory(self._context)
        if sequence is None:
            lib.llama_memory_clear(memory, True)
        else:
            lib.llama_memory_seq_rm(memory, sequence, -1, -1)

    def step(self, tokens: Iterable[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Run (token, position, sequence, wants an answer); return each sequence's next token."""
        batch, wanted = self._batch, {}
        batch.n_tokens = 0
        for place, (token, position, sequence, is_last) in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = is_last
            batch.n_tokens = place + 1
            if is_last:
                wanted[sequence] = place
        code = lib.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode says {code}")
        return {sequence: self._best(place) for sequence, place in wanted.items()}

    def _best(self, place: int) -> int:
        logits = lib.llama_get_logits_ith(self._context, place)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._num_vocab,))))


class Batching:
    """The requests of one ask: the sequence that each has, and the token that is next."""

    def __init__(self, context: Context, ask: Ask) -> None:
        self._context = context
        self._ask = ask
        self._clock = Clock(ask)
        self._waiting = list(range(len(ask.ids)))
        self._free = list(range(ask.concurrency))
        self._running: dict[int, int] = {}  # sequence → request
        self._next: dict[int, int] = {}  # sequence → token that it decodes next

    def run(self) -> Answer:
        """Complete all."""
        self._context.clear()
        while self._running or self._waiting:
            self._admit()
            self._decode()
        return self._clock.answer()

    def _admit(self) -> None:
        """Read new prompts, whole ones, as many as fit into one batch."""
        tokens: list[tuple[int, int, int, bool]] = []
        while self._free and self._waiting:
            ids = self._ask.ids[self._waiting[0]]
            if len(tokens) + len(ids) > BATCH_TOKENS:
                break
            sequence, number = self._free.pop(), self._waiting.pop(0)
            self._running[sequence] = number
            self._clock.give(number)
            last = len(ids) - 1
            tokens += [(token, at, sequence, at == last) for at, token in enumerate(ids)]
        if tokens:
            self._take(self._context.step(tokens))

    def _decode(self) -> None:
        if self._waiting and self._free:
            return  # prompts first
        rows = [(token, self._position(seq), seq, True) for seq, token in self._next.items()]
        if rows:
            self._take(self._context.step(rows))

    def _position(self, sequence: int) -> int:
        number = self._running[sequence]
        return len(self._ask.ids[number]) + len(self._clock.ids[number]) - 1

    def _take(self, made: dict[int, int]) -> None:
        for sequence, token in made.items():
            number = self._running[sequence]
            self._clock.take(number, [token])
            self._next[sequence] = token
            if len(self._clock.ids[number]) == self._ask.max_tokens:
                del self._running[sequence], self._next[sequence]
                self._context.clear(sequence)
                self._free.append(sequence)


def load(plan: Plan) -> tuple[Run, str]:
    """Load the GGUF file and choose the number of threads."""
    context = Context(plan)

    def run(ask: Ask) -> Answer:
        return Batching(context, ask).run()

    warm_up(run, plan)
    count = plan.threads or _best_threads(context, run, plan)
    context.use_threads(count)
    chosen = f"{count} threads, batches of {BATCH_TOKENS}, weights packed for the processor"
    return run, f"llama-cpp-python {lib.__version__}, {chosen}"


def _best_threads(context: Context, run: Run, plan: Plan) -> int:
    width = min(8, plan.capacity)
    prompts = [[10 + number, *range(100, 140)] for number in range(width)]
    ask = Ask([""] * width, prompts, width, TRIAL_TOKENS)
    seconds: dict[int, list[float]] = {}
    for _ in range(NUM_TRIALS):
        for count in range(1, (os.cpu_count() or 1) + 1):
            context.use_threads(count)
            began = time.perf_counter()
            run(ask)
            seconds.setdefault(count, []).append(time.perf_counter() - began)
    return min(seconds, key=lambda count: min(seconds[count]))


if __name__ == "__main__":
    serve(load)
