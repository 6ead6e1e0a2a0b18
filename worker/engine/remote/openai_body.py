"""A job as the request body of an OpenAI-compatible server. Pure.

What the OpenAI API has is always said, because servers have defaults of their own. What only some
servers know (vLLM, SGLang; llama.cpp in part) is sent when the job asks for it, and never else:
strict servers refuse a field that they do not know.
"""

import msgspec
from msgspec import UNSET, UnsetType

from common.jobs import JobSpec, Message

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool


class _Body(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Fields without a default are always sent, the others where they differ from it."""

    model: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stream: bool
    stream_options: _StreamOptions
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    logit_bias: dict[int, float] = {}
    logprobs: bool | int | None = None
    top_logprobs: int = 0
    # Extensions, by vLLM's names.
    top_k: int = 0
    min_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False


def request_of(spec: JobSpec, model: str) -> tuple[str, bytes]:
    """Return the path below the base URL and the JSON body that ask for the job's answers."""
    is_chat = spec.messages is not None
    wants_logprobs = spec.logprobs is not None
    sampling = spec.sampling
    body = _Body(
        model=model,
        max_tokens=spec.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stream=True,
        stream_options=_StreamOptions(include_usage=True),
        prompt=spec.prompt,
        messages=spec.messages,
        n=spec.n,
        stop=tuple(filter(None, spec.stop)),
        presence_penalty=_unless(0, sampling.presence_penalty),
        frequency_penalty=_unless(0, sampling.frequency_penalty),
        logit_bias=sampling.logit_bias,
        # The chat API has a switch and a number, the older one a number.
        logprobs=True if is_chat and wants_logprobs else spec.logprobs,
        top_logprobs=spec.logprobs or 0 if is_chat else 0,
        top_k=sampling.top_k,
        min_p=_unless(0, sampling.min_p),
        repetition_penalty=_unless(1, sampling.repetition_penalty),
        stop_token_ids=spec.stop_token_ids,
        min_tokens=spec.min_tokens,
        ignore_eos=spec.ignore_eos,
    )
    return CHAT_PATH if is_chat else COMPLETION_PATH, msgspec.json.encode(body)


def _unless(default: float, value: float) -> float | UnsetType:
    """Leave out a default; msgspec itself knows a default float only by its identity."""
    return UNSET if value == default else value
