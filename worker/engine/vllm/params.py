"""What vLLM is told: the engine's arguments and each answer's sampling. Imports vLLM."""

from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from common.errors import StartupFailed
from common.jobs import JobSpec
from worker.engine.options import EngineOptions

_SEEDS = 2**63


def engine_args(source: str, options: EngineOptions, *, eager: bool) -> AsyncEngineArgs:
    """Return the arguments for the model in ``source``; raises ``StartupFailed``."""
    if options.quantize in ("int8", "int4"):
        raise StartupFailed(
            "The vllm engine takes quantised checkpoints as they are; leave HEADRACE_QUANTIZE out."
        )
    is_cpu = bool(current_platform.is_cpu())
    if options.device != "auto" and (options.device == "cpu") != is_cpu:
        raise StartupFailed(f"This vLLM was not built for {options.device}; use --device auto.")
    dtype: Any = options.dtype
    if dtype == "auto":
        dtype = "float32" if is_cpu else "bfloat16"
    return AsyncEngineArgs(
        model=source,
        dtype=dtype,
        max_num_seqs=options.capacity,
        kv_cache_memory_bytes=options.kv_bytes or None,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        enforce_eager=eager,
        disable_log_stats=True,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Which answer of a job is asked for, and how many of its tokens there are already."""

    choice: int
    num_emitted: int


def sampling_params(spec: JobSpec, place: Place) -> SamplingParams:
    """Return how the rest of an answer is sampled.

    Emitted tokens are part of vLLM's prompt, so after a takeover ``presence_penalty`` and
    ``frequency_penalty`` no longer count them, and the random numbers are other ones than those
    that the first worker would have drawn (never the same ones again).
    """
    sampling = spec.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=(sampling.seed + place.choice + (place.num_emitted << 20)) % _SEEDS,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        stop_token_ids=list(spec.stop_token_ids),
        ignore_eos=spec.ignore_eos,
        max_tokens=spec.max_tokens - place.num_emitted,
        min_tokens=max(0, spec.min_tokens - place.num_emitted),
        logprobs=spec.logprobs,
        # Text and stop strings are ours, so that any worker of ours can take an answer over.
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
