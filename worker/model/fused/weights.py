"""Takes the weights of a transformers model of the Llama family."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from worker.model.fused.buffers import address, aligned_copy
from worker.model.fused.layout import LAYER, Quantize
from worker.model.fused.packing import Packed, pack
from worker.model.fused.team import find_team
from worker.model.llama import is_llama, window_of

Array = NDArray[Any]

_NO_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class Weights:
    """Packed matrices and vectors, and the records that point to them."""

    matrices: Array  # of LINEAR
    vectors: Array  # of LAYER
    embedding: Array
    norm: Array
    inverses: Array
    rotary_scale: float
    owned: tuple[Any, ...]  # what the records point to


def supports(network: Any) -> bool:
    """Say whether ``Weights`` and the compiled code know all parts of this model."""
    return network.device.type == "cpu" and find_team() is not None and is_llama(network)


def take_weights(network: Any, quantize: Quantize) -> Weights:
    """Pack the weights of a model; it can be dropped afterwards."""
    packed = list(_pack_all(network, quantize))
    kept: list[Array] = []

    def keep(tensor: torch.Tensor) -> Array:
        kept.append(aligned_copy(_array(tensor)))
        return kept[-1]

    vectors = np.zeros(len(network.model.layers), LAYER)
    for record, layer in zip(vectors, network.model.layers, strict=True):
        attention = layer.self_attn
        record["input_norm"] = address(keep(layer.input_layernorm.weight))
        record["attention_norm"] = address(keep(layer.post_attention_layernorm.weight))
        if hasattr(attention, "q_norm"):
            record["query_norm"] = address(keep(attention.q_norm.weight))
            record["key_norm"] = address(keep(attention.k_norm.weight))
        record["window"] = window_of(network, attention) or _NO_WINDOW
    rotary = network.model.rotary_emb
    return Weights(
        matrices=np.concatenate([matrix.record for matrix in packed]),
        vectors=vectors,
        embedding=_array(network.model.embed_tokens.weight),
        norm=keep(network.model.norm.weight),
        inverses=keep(rotary.inv_freq),
        rotary_scale=float(rotary.attention_scaling),
        owned=(packed, kept),
    )


def _pack_all(network: Any, quantize: Quantize) -> Iterator[Packed]:
    for layer in network.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield _pack([attention.q_proj, attention.k_proj, attention.v_proj], quantize)
        yield _pack([attention.o_proj], quantize)
        yield _pack([mlp.gate_proj, mlp.up_proj], quantize)
        yield _pack([mlp.down_proj], quantize)
    # Nibbles cost the most here, where their error is not averaged any more.
    yield _pack([network.lm_head], "int8" if quantize == "int4" else quantize)


def _pack(parts: list[nn.Linear], quantize: Quantize) -> Packed:
    """Pack layers with the same input as one."""
    weight = np.concatenate([_array(part.weight) for part in parts])
    biases = [_array(bias) for part in parts if (bias := getattr(part, "bias", None)) is not None]
    return pack(weight, np.concatenate(biases) if biases else None, quantize)


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array
