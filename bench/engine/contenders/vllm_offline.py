"""vLLM's engine, driven as its own ``LLM.generate`` drives it, with the time of each token."""

import os
import time
from typing import Any

from bench.engine.contenders.line import Answer, Ask, Clock, Plan, Run, serve, warm_up

# Read when vLLM is imported. All cores are its own: nothing else of the benchmark runs meanwhile.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def load(plan: Plan) -> tuple[Run, str]:
    """Load the converted copy of the checkpoint."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - after the environment
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    llm = LLM(
        model=plan.directory,
        dtype=plan.dtype,
        max_model_len=plan.max_len,
        max_num_seqs=plan.capacity,
        **plan.options,
    )

    def run(ask: Ask) -> Answer:
        params = SamplingParams(
            temperature=0,
            max_tokens=ask.max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        return _run(llm.llm_engine, params, ask)

    warm_up(run, plan)
    binding = os.environ["VLLM_CPU_OMP_THREADS_BIND"]
    return run, f"{plan.dtype}, threads bound to cores {binding}"


def _run(engine: Any, params: Any, ask: Ask) -> Answer:
    clock = Clock(ask)
    waiting = iter(range(len(ask.ids)))
    prefix = f"{time.monotonic_ns()}"

    def give_next() -> None:
        number = next(waiting, None)
        if number is not None:
            clock.give(number)
            prompt = {"prompt_token_ids": ask.ids[number]}
            engine.add_request(f"{prefix}-{number}", prompt, params)

    for _ in range(ask.concurrency):
        give_next()
    while engine.has_unfinished_requests():
        for output in engine.step():
            number = int(output.request_id.split("-")[1])
            clock.take(number, list(output.outputs[0].token_ids))
            if output.finished:
                give_next()
    return clock.answer()


if __name__ == "__main__":
    serve(load)
