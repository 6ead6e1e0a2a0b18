"""What is measured: on a GPU, and without one."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from bench.engine.contenders.line import Ask
from bench.gpu.random_model import config_8b, config_tiny, random_prompt


@dataclass(frozen=True, slots=True)
class Shape:
    """What is measured."""

    config: LlamaConfig
    device: torch.device
    dtype: torch.dtype
    batches: tuple[int, ...]
    prompt_len: int
    max_tokens: int
    prefill: tuple[int, int]  # prompts, tokens of each
    step_tokens: int

    @property
    def max_len(self) -> int:
        """The longest sequence."""
        return max(self.prompt_len + self.max_tokens, self.prefill[1] + 1)

    @property
    def capacity(self) -> int:
        """The most requests at once."""
        return max(*self.batches, self.prefill[0])


def gpu_shape(step_tokens: int) -> Shape:
    """Return what is measured on a GPU."""
    device = torch.device("cuda")
    return Shape(
        config_8b(), device, torch.bfloat16, (1, 32, 128), 128, 128, (8, 2048), step_tokens
    )


def tiny_shape() -> Shape:
    """Return what runs anywhere."""
    device = torch.device("cpu")
    return Shape(config_tiny(), device, torch.float32, (1, 4), 32, 16, (2, 128), 512)


_seeds = iter(range(1_000_000))


def new_ask(shape: Shape, count: int, length: int, max_tokens: int) -> Ask:
    """Return random prompts that nobody has seen."""
    prompts = [random_prompt(shape.config, length, next(_seeds)) for _ in range(count)]
    ids, texts = [ids for ids, _ in prompts], [text for _, text in prompts]
    return Ask(texts, ids, count, max_tokens)
