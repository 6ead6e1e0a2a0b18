"""A Llama-shaped model with random weights, made where it is used: no file of 16 GB is read.

Speed does not depend on what the weights are. The engine under test loads a directory with a
configuration and a tokeniser; for the length of ``made_in_place`` transformers makes the weights on
the device instead of reading them. The tokeniser has one word per token (``w17`` is 17).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

_SPECIAL = 3  # unknown, begin, end


def config_8b() -> LlamaConfig:
    """Return the shape of Llama 3.1 8B."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )


def config_tiny() -> LlamaConfig:
    """Return a shape that any processor runs at once."""
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    )


def write_checkpoint(config: LlamaConfig, directory: Path) -> None:
    """Write all of a checkpoint but the weights."""
    config.save_pretrained(directory)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="w0", bos_token="w1", eos_token="w2"
    )
    tokenizer.save_pretrained(directory)


def random_prompt(config: LlamaConfig, length: int, seed: int) -> tuple[list[int], str]:
    """Return a prompt as IDs and as text."""
    numbers = random.Random(seed)
    ids = [numbers.randrange(_SPECIAL, config.vocab_size) for _ in range(length)]
    return ids, " ".join(f"w{number}" for number in ids)


def make_network(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model with random weights, the same ones each time."""
    torch.manual_seed(0)
    with device:
        make = AutoModelForCausalLM.from_config
        network: Any = make(deepcopy(config), dtype=dtype)  # type: ignore[no-untyped-call]
    return network.eval().requires_grad_(requires_grad=False)


@contextmanager
def made_in_place(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let ``AutoModelForCausalLM.from_pretrained`` return ``make_network``."""

    def make(*_: Any, **__: Any) -> Any:
        return make_network(config, device, dtype)

    with patch.object(AutoModelForCausalLM, "from_pretrained", make):
        yield
