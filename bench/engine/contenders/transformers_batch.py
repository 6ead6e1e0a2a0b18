"""transformers' own continuous batching, ``generate_batch``; and ``generate``, the reference.

``options``: ``{"reference": true}`` answers with plain ``generate``, one prompt at a time.
"""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from bench.engine.contenders.line import Answer, Ask, Clock, Plan, Run, serve, warm_up


def load(plan: Plan) -> tuple[Run, str]:
    """Load the converted copy of the checkpoint."""
    if plan.threads:
        torch.set_num_threads(plan.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(
        plan.directory, dtype=getattr(torch, plan.dtype), local_files_only=True
    )
    model.eval()
    if plan.options.get("reference"):
        return _reference(model), f"{plan.dtype}, generate, one prompt at a time"
    run = batching(model, plan.capacity, plan.max_len)
    warm_up(run, plan)
    return run, f"{plan.dtype}, {model.config._attn_implementation}"  # noqa: SLF001 - no other way


def batching(model: Any, capacity: int, max_len: int, step_tokens: int = 512) -> Run:
    """Return what answers an ask with ``generate_batch``; its manager stays between asks."""
    page_size = 256 if model.device.type == "cuda" else 32  # flash attention wants its 256
    pages = -(-max_len // page_size) + 1
    config = ContinuousBatchingConfig(
        page_size=page_size,
        num_blocks=capacity * pages,
        max_batch_tokens=step_tokens,
        max_requests_per_batch=capacity,
        max_blocks_per_request=pages + pages % 2,
        allow_block_sharing=False,
    )

    def run(ask: Ask) -> Answer:
        clock = Clock(ask)
        for number in range(len(ask.ids)):
            clock.give(number)
        results = model.generate_batch(
            inputs=ask.ids,
            generation_config=_greedy(ask.max_tokens),
            continuous_batching_config=config,
            record_timestamps=True,
            persistent_manager=True,
            max_new_tokens=ask.max_tokens,
        )
        for number, result in enumerate(results.values()):
            if result.error:
                raise RuntimeError(result.error)
            _replay(clock, number, result)
        return clock.answer()

    return run


def _replay(clock: Clock, number: int, result: Any) -> None:
    stamps = result.timestamps or [time.perf_counter()] * len(result.generated_tokens)
    for token, at in zip(result.generated_tokens, stamps, strict=False):
        clock.take(number, [token], at)


def _reference(model: Any) -> Run:
    def run(ask: Ask) -> Answer:
        clock = Clock(ask)
        for number, ids in enumerate(ask.ids):
            clock.give(number)
            row = torch.tensor([ids])
            with torch.inference_mode():
                made = model.generate(
                    row,
                    attention_mask=torch.ones_like(row),
                    generation_config=_greedy(ask.max_tokens),
                )
            clock.take(number, made[0, len(ids) :].tolist())
        return clock.answer()

    return run


def _greedy(max_tokens: int) -> GenerationConfig:
    # No end of sequence, so that every answer has its full length.
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0
    )


if __name__ == "__main__":
    serve(load)
