"""The Llama family in torch's own operators, with few and large ones: what a GPU wants.

A layer is a third of the kernels that transformers' modules are: products with the same input are
one, residuals are added by the products, queries and keys are turned together, keys and values
are stored together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from worker.kv.pool import KvPool
from worker.model.attention import Attention, Scoring
from worker.model.batch import Batch

_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROPE_TYPES = frozenset({"default", "linear", "llama3"})


def is_llama(network: Any) -> bool:
    """Tell whether a transformers model has the parts of this family, and no others."""
    config = network.config
    if config.model_type not in _FAMILY or config.hidden_act != "silu":
        return False
    rotary = network.model.rotary_emb
    attention = network.model.layers[0].self_attn
    if 2 * len(rotary.inv_freq) != attention.head_dim:
        return False
    linears = all(type(part) is nn.Linear for part in _linears(network))
    return linears and rotary.rope_type in _ROPE_TYPES


def window_of(network: Any, attention: Any) -> int | None:
    """Return how many positions an attention layer sees, None for all of them."""
    holder = network.config if network.config.model_type == "mistral" else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window or None


def _linears(network: Any) -> Iterator[Any]:
    yield network.lm_head
    for layer in network.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        yield from (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


@dataclass(frozen=True, slots=True)
class _Product:
    """A linear layer, or several with the same input."""

    weight: Tensor
    bias: Tensor | None

    def of(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.bias)

    def added_to(self, stream: Tensor, rows: Tensor) -> Tensor:
        if self.bias is not None:
            stream = stream + self.bias
        return torch.addmm(stream, rows, self.weight.mT)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor  # before attention
    qkv: _Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: _Product
    mlp_norm: Tensor  # before the MLP
    gate_up: _Product
    down: _Product
    scoring: Scoring


class MergedLlama:
    """A ``Network``. The model goes on working: its layers have views of the merged weights."""

    def __init__(
        self, network: Any, pool: KvPool, make_attention: Callable[[Batch], Attention]
    ) -> None:
        model, config = network.model, network.config
        self._pool = pool
        self._make_attention = make_attention
        self._heads: int = config.num_attention_heads
        self._epsilon: float = config.rms_norm_eps
        self._inverses: Tensor = model.rotary_emb.inv_freq.float()
        self._rotary_scale: float = model.rotary_emb.attention_scaling
        self._embedding: Tensor = model.embed_tokens.weight
        self._layers = [_take(network, layer) for layer in model.layers]
        self._norm: Tensor = model.norm.weight
        self._head = _Product(network.lm_head.weight, network.lm_head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """See ``Network``."""
        attention = self._make_attention(batch)
        stream = F.embedding(batch.ids, self._embedding)
        angles = self._angles(batch.positions, stream.dtype)
        for number, layer in enumerate(self._layers):
            found = self._attend(number, layer, batch, attention, stream, angles)
            stream = layer.output.added_to(stream, found)
            gate, up = layer.gate_up.of(self._normal(stream, layer.mlp_norm)).chunk(2, dim=-1)
            stream = layer.down.added_to(stream, F.silu(gate) * up)
        return self._head.of(self._normal(stream[batch.rows], self._norm)).float()

    def _attend(
        self,
        number: int,
        layer: _Layer,
        batch: Batch,
        attention: Attention,
        stream: Tensor,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Store the layer's keys and values; return what the queries find [T, heads · dim]."""
        shape = self._pool.shape
        heads = layer.qkv.of(self._normal(stream, layer.attention_norm))
        heads = heads.view(len(stream), -1, shape.head_dim)
        query, keys_values = heads[:, : self._heads], heads[:, self._heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            keys = keys_values[:, : shape.num_heads]
            query.copy_(self._normal(query, layer.query_norm))
            keys.copy_(self._normal(keys, layer.key_norm))
        _turn(heads[:, : self._heads + shape.num_heads], angles)
        keys_values = keys_values.view(len(stream), 2, shape.num_heads, -1).to(shape.dtype)
        self._pool.blocks[:, number][batch.blocks, :, batch.offsets] = keys_values
        found = attention(query, *self._pool.layer(number), layer.scoring)
        return found.flatten(1)

    def _normal(self, rows: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(rows, (rows.shape[-1],), weight, self._epsilon)

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, 1, dim]; the sines of the first half are negative."""
        angles = positions[:, None].float() * self._inverses
        cosines, sines = angles.cos() * self._rotary_scale, angles.sin() * self._rotary_scale
        both = torch.cat((cosines, cosines), -1), torch.cat((-sines, sines), -1)
        return both[0][:, None].to(dtype), both[1][:, None].to(dtype)


def _turn(heads: Tensor, angles: tuple[Tensor, Tensor]) -> None:
    """Turn queries and keys to their positions, in place (RoFormer, arXiv:2104.09864)."""
    cosines, sines = angles
    halves_swapped = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cosines).addcmul_(halves_swapped, sines)


def _take(network: Any, layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=layer.input_layernorm.weight,
        qkv=_merge([attention.q_proj, attention.k_proj, attention.v_proj]),
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=_merge([attention.o_proj]),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_merge([mlp.gate_proj, mlp.up_proj]),
        down=_merge([mlp.down_proj]),
        scoring=Scoring(attention.scaling, window_of(network, attention)),
    )


def _merge(parts: list[nn.Linear]) -> _Product:
    """Put the weights of these layers into one tensor; they keep views of it."""
    if len(parts) == 1:
        return _Product(parts[0].weight, parts[0].bias)
    sizes = [part.out_features for part in parts]
    weight = torch.cat([part.weight for part in parts])
    for part, own in zip(parts, torch.split(weight, sizes), strict=True):
        part.weight = nn.Parameter(own, requires_grad=False)
    biases = [bias for part in parts if (bias := getattr(part, "bias", None)) is not None]
    return _Product(weight, torch.cat(biases) if biases else None)
