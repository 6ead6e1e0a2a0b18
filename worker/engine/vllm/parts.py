"""The parts of the vLLM engine that import vLLM, which takes many seconds."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoTokenizer
from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from common.errors import StartupFailed
from worker.engine.local.intake import Intake, Limits
from worker.engine.local.made import Token
from worker.engine.local.sampling import RawLogprobs
from worker.engine.local.sequence import Sequence
from worker.engine.local.tokenizer import Tokenizer
from worker.engine.options import EngineOptions
from worker.engine.protocol import EngineInfo, Progress, Request
from worker.engine.vllm.params import Place, engine_args, sampling_params
from worker.model.checkpoint import Checkpoint
from worker.model.loading import eos_ids, find_source


@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens of one answer."""

    tokens: tuple[Token, ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class VllmParts:
    """A started vLLM and what is ours around it."""

    # What a single request can be at fault for.
    request_errors: ClassVar[tuple[type[Exception], ...]] = (
        ValueError,
        VLLMClientError,
        EngineGenerateError,
    )
    death: ClassVar[type[Exception]] = EngineDeadError

    info: EngineInfo
    tokenizer: Tokenizer
    intake: Intake
    llm: Any

    @property
    def is_dead(self) -> bool:
        """Tell whether vLLM's process has died."""
        return bool(self.llm.errored)

    async def generate(
        self, request: Request, sequence: Sequence, choice: int
    ) -> AsyncGenerator[Generated]:
        """Yield the tokens of an answer as they come; left early, vLLM drops the request."""
        # The salt keeps the tenants' prefix caches apart.
        prompt = TokensPrompt(prompt_token_ids=sequence.ids, cache_salt=request.tenant)
        place = Place(choice, len(request.emitted[choice].ids))
        params = sampling_params(request.spec, place)
        outputs = self.llm.generate(prompt, params, sequence.id, priority=sequence.rank)
        async with aclosing(outputs):
            async for output in outputs:
                made = output.outputs[0]
                tokens = _tokens(made.token_ids, made.logprobs, request.spec.logprobs)
                yield Generated(tokens, output.num_cached_tokens or 0)

    def shut_down(self) -> None:
        """End vLLM's process."""
        self.llm.shutdown()


def read_vllm(
    checkpoint: Checkpoint, options: EngineOptions, progress: Progress, *, eager: bool
) -> VllmParts:
    """Start vLLM; raises ``StartupFailed`` with the last line of what it says at length."""
    found = find_source(checkpoint, options.cache_dir / "models", progress)
    source = str(found["pretrained_model_name_or_path"])
    progress("loading", 0.0)
    args = engine_args(source, options, eager=eager)
    try:
        llm: Any = AsyncLLM.from_engine_args(args)
    except (OSError, ValueError, RuntimeError) as error:
        last_line = str(error).strip().rpartition("\n")[2]
        raise StartupFailed(f"vLLM cannot load {checkpoint.name}: {last_line}") from error
    tokenizer = AutoTokenizer.from_pretrained(**found)
    limits = _limits(llm, tokenizer)
    info = EngineInfo(
        model=checkpoint.name,
        device=str(llm.vllm_config.device_config.device_type),
        dtype=limits.dtype,
        context_len=limits.context_len,
        capacity=options.capacity,
    )
    ours = Tokenizer(tokenizer)
    progress("loading", 1.0)
    return VllmParts(info, ours, Intake(ours, limits), llm)


def _limits(llm: Any, tokenizer: Any) -> Limits:
    model = llm.model_config
    generation = model.try_get_generation_config() or {}
    return Limits(
        context_len=model.max_model_len,
        vocab_len=model.get_vocab_size(),
        eos_ids=eos_ids(generation.get("eos_token_id"), tokenizer.eos_token_id),
        cache_tokens=model.max_model_len,  # vLLM refuses to start with less
        block_tokens=llm.vllm_config.cache_config.block_size,
        fingerprint="vllm",
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _tokens(ids: Any, logprobs: Any, num_tops: int | None) -> tuple[Token, ...]:
    if num_tops is None:
        return tuple(Token(int(token_id)) for token_id in ids)
    return tuple(
        Token(int(token_id), _raw(int(token_id), found, num_tops))
        for token_id, found in zip(ids, logprobs, strict=True)
    )


def _raw(token_id: int, found: dict[int, Any], num_tops: int) -> RawLogprobs:
    """Return vLLM's logprobs of a position: the chosen token may be there beside the top ones."""
    ranked = sorted(found.items(), key=lambda item: item[1].rank)[:num_tops]
    return RawLogprobs(
        found[token_id].logprob,
        [int(other) for other, _ in ranked],
        [one.logprob for _, one in ranked],
    )
