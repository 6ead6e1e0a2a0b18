"""Random models, small enough to be made by a test."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT_LEN = 256
EOS = "<|end|>"

_TALE = "the river turns slowly under a wooden wheel, and the wheel carries the grain, café 水 🌊"
_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'villain' %}{{ raise_exception('no villains') }}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


ARCHITECTURES: dict[str, type[Any]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "gpt2": GPT2Config,
    "phi3": Phi3Config,
}
UNSUPPORTED: dict[str, type[Any]] = {
    "falcon": FalconConfig,
    "bloom": BloomConfig,
    "llama4_text": Llama4TextConfig,
    "mamba": MambaConfig,
    "t5": T5Config,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3": {
        "head_dim": 8,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {"pad_token_id": 0},
    "llama4_text": {"attention_chunk_size": 64, "num_local_experts": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}


def save_tiny_model(
    directory: Path, architecture: str = "llama", *, chat_template: str | None = _TEMPLATE
) -> None:
    """Write a model of two layers with a byte-level BPE tokeniser."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    torch.manual_seed(7)
    network = _make_network(architecture, tokenizer)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _make_network(architecture: str, tokenizer: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LEN,
        # Large enough for sharp differences between logits, so that greedy answers have no ties.
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
        **_OWN_SIZES.get(architecture, {}),
    }
    if architecture == "t5":
        return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **_OWN_SIZES["t5"]))
    if architecture in {"bloom", "mamba"}:
        del sizes["max_position_embeddings"]  # real ones have none
    config = (ARCHITECTURES | UNSUPPORTED)[architecture](**sizes)
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


def make_tokenizer() -> Any:
    """Return a byte-level BPE tokeniser that knows a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[EOS, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TALE] * 4, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=EOS
    )
