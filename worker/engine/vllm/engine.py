"""The vLLM engine: vLLM in this process, with our own tokenising, detokenising and stop strings.

So its answers are logged as token IDs, and another worker (a local engine's too) can go on with
them: with prompt and emitted tokens as vLLM's prompt, and fewer tokens to make.
"""

import asyncio
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING

from common.errors import StartupFailed
from worker.causes import first_cause, one_line
from worker.engine.daemon import in_daemon
from worker.engine.local.made import Token
from worker.engine.local.run import Run
from worker.engine.options import EngineOptions
from worker.engine.protocol import EngineInfo, Prefilled, Progress, Refused, Request
from worker.engine.task_engine import Ongoing, TaskEngine
from worker.engine.vllm.tether import Tether
from worker.model.checkpoint import Checkpoint, find_checkpoint

if TYPE_CHECKING:
    from worker.engine.local.intake import Prepared
    from worker.engine.local.sequence import Sequence
    from worker.engine.vllm.parts import VllmParts

_HEALTH_S = 1.0
_LOOK_S = 0.2  # for vLLM's processes, while it starts
_NUM_TOKENIZER_THREADS = 2


class VllmEngine(TaskEngine):
    """Gives requests to vLLM, which batches them; ``eager`` starts faster and runs slower."""

    def __init__(self, options: EngineOptions, *, eager: bool = False) -> None:
        super().__init__("vllm", options.capacity)
        self._checkpoint = find_checkpoint(options.model)
        self._options = options
        self._eager = eager
        self._orders = count()
        self._pool = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, "tokenizer")
        # Set by ``load``: vLLM and our tokeniser, what ends its process with ours, who watches it.
        self._loaded: VllmParts | None = None
        self._tether: Tether | None = None
        self._watch: asyncio.Task[None] | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        """Import vLLM and start its engine process."""
        progress("importing", 0.0)

        def read() -> "VllmParts":
            return _read_parts(self._checkpoint, self._options, progress, eager=self._eager)

        self._tether = Tether()
        loading = in_daemon(read, "model-loader")
        while not loading.done():
            await asyncio.wait((loading,), timeout=_LOOK_S)
            children = multiprocessing.active_children()
            self._tether.bind(child.pid for child in children if child.pid)
        parts = self._loaded = loading.result()
        self._watch = asyncio.create_task(self._watch_health(), name="vllm-health")
        return parts.info

    async def probe(self, _request: Request) -> str:
        """Return "": vLLM does not tell what its prefix cache holds."""
        return ""

    async def close(self) -> None:
        """End all requests and vLLM's process."""
        if self._watch is not None:
            self._watch.cancel()
        await super().close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            await in_daemon(self._loaded.shut_down, "vllm-shutdown")
            # A model that still loads stays tethered, and ends with this process.
            if self._tether is not None:
                self._tether.cut()

    @property
    def _parts(self) -> "VllmParts":
        assert self._loaded is not None, "load() comes first"
        return self._loaded

    async def _serve(self, ongoing: Ongoing) -> None:
        request = ongoing.request
        prepare = self._parts.intake.prepare
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._pool, prepare, request, next(self._orders))
        refusal = prepared if isinstance(prepared, Refused) else _refusal(request)
        if refusal is not None:
            self._say(ongoing, refusal)
            return
        assert not isinstance(prepared, Refused)
        run = Run(request, ongoing.sink)
        ongoing.cancelled = run.cancelled
        for output in run.open(prepared):
            self._say(ongoing, output)
        await self._generate_all(ongoing, run, prepared)

    async def _generate_all(self, ongoing: Ongoing, run: Run, prepared: "Prepared") -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for sequence in prepared.sequences:
                    group.create_task(self._generate(ongoing, run, sequence))
        except* self._parts.request_errors as errors:
            detail = f"vLLM refused the job: {one_line(errors)}"
            self._say(ongoing, Refused("engine-refused", detail))
        else:
            if run.end is not None:
                self._say(ongoing, run.end)

    async def _generate(self, ongoing: Ongoing, run: Run, sequence: "Sequence") -> None:
        """Feed one answer; leaving early aborts it in vLLM."""
        choice = int(sequence.id.rpartition("#")[2])
        prompt_len = sequence.prompt_len
        assert run.answers is not None
        answer = run.answers.all[choice]
        generated = self._parts.generate(ongoing.request, sequence, choice)
        async with aclosing(generated) as outputs:
            async for output in outputs:
                prefilled = Prefilled(prompt_len, min(prompt_len, output.cached_tokens), 0.0)
                made: tuple[Prefilled | Token, ...] = (prefilled, *output.tokens)
                for one in made:
                    for said in run.take(choice, one, self._parts.tokenizer):
                        self._say(ongoing, said)
                if answer.end is not None:
                    return

    def _explain(self, error: Exception) -> str | None:
        is_dead = self._parts.is_dead or isinstance(first_cause(error), self._parts.death)
        return None if is_dead else super()._explain(error)

    async def _watch_health(self) -> None:
        """Notice that vLLM's process died, also while no request runs."""
        while not self._parts.is_dead:  # noqa: ASYNC110 - vLLM has no event for it
            await asyncio.sleep(_HEALTH_S)
        self._outlet.fail(RuntimeError("vLLM's engine process died; its log says why"))


def _refusal(request: Request) -> Refused | None:
    if request.spec.echo and request.spec.logprobs is not None:
        return Refused(
            "not-supported", "The vllm engine has no logprobs of prompts; leave out echo."
        )
    return None


def _read_parts(
    checkpoint: Checkpoint, options: EngineOptions, progress: Progress, *, eager: bool
) -> "VllmParts":
    """Load the model; runs in a thread of its own, for it takes a minute."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would tell its makers of this machine
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from worker.engine.vllm.parts import read_vllm  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartupFailed(
            f"The vllm engine needs {error.name}; run `pip install 'headrace[vllm]'`."
        ) from error
    return read_vllm(checkpoint, options, progress, eager=eager)
