"""Any decoder model of transformers over the paged KV cache.

The model's own modules run as they are; only their attention function is ours, registered through
``AttentionInterface``. All sequences of a step are one row of tokens with explicit positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from worker.kv.pool import KvPool
from worker.model.attention import Attention, GatheredAttention, Scoring, store
from worker.model.batch import Batch
from worker.model.masks import Masks

_numbers = count()


class UnsupportedModel(Exception):
    """The model cannot run over a paged KV cache; the text says why."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Key-value heads and their size, as one attention layer uses them."""

    num_heads: int
    head_dim: int


class GenericNetwork:
    """A ``Network`` around a transformers model."""

    def __init__(self, network: Any) -> None:
        self._network = network
        # How attention is computed.
        self._make_attention: Callable[[Batch], Attention] = GatheredAttention
        self._own_attention: str = network.config._attn_implementation  # noqa: SLF001
        # The attention layers, in the order in which they are called.
        self._layers: dict[int, int] = {}
        # Set by ``attach``.
        self._pool: KvPool | None = None
        # Set during ``forward``.
        self._batch: Batch | None = None
        self._attention: Attention | None = None
        self._name = f"headrace-{next(_numbers)}"
        # No mask is registered with it, so that transformers makes none: to make one it would look
        # at the positions first, which on a GPU waits for them.
        AttentionInterface.register(self._name, self._attend)

    @property
    def vocab_len(self) -> int:
        """Token IDs are below it."""
        return int(self._network.get_input_embeddings().num_embeddings)

    def measure(self, context_len: int) -> list[LayerShape]:
        """Return the shape of every attention layer, found by running one token.

        Raises ``UnsupportedModel`` where attention does not go through transformers' interface, or
        is something else than causal up to ``context_len``, but for sliding windows.
        """
        found: list[LayerShape] = []

        def record(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,  # some models name it
            sliding_window: int | None = None,
            **options: Any,
        ) -> tuple[Tensor, None]:
            _refuse_extras(options)
            if key.shape != value.shape:
                raise UnsupportedModel("its keys and values have different sizes")
            if not masks.allow(attention_mask, sliding_window):
                raise UnsupportedModel("its attention has a mask of its own")
            self._layers[id(module)] = len(found)
            found.append(LayerShape(key.shape[1], key.shape[3]))
            return query.transpose(1, 2), None

        name = f"{self._name}-measured"
        masks = Masks(name, context_len)
        AttentionInterface.register(name, record)
        try:
            self._call(_one_token(self._network.device), name)
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever foreign modules raise where ours do not fit
            reason = str(error).strip().partition("\n")[0]
            raise UnsupportedModel(f"it cannot compute a token: {reason}") from error
        finally:
            AttentionInterface.register(name, _detached)
            masks.forget()
        if not found:
            raise UnsupportedModel("its attention does not use transformers' AttentionInterface")
        return found

    def using(self, make_attention: Callable[[Batch], Attention]) -> "GenericNetwork":
        """Compute attention in this way from now on; return the network itself."""
        self._make_attention = make_attention
        return self

    def detach(self) -> None:
        """Let go of the model: transformers keeps a registered function for ever."""
        AttentionInterface.register(self._name, _detached)

    def attach(self, pool: KvPool) -> None:
        """Use these blocks from now on."""
        self._pool = pool

    def forward(self, batch: Batch) -> Tensor:
        """Run the tokens through the model; see ``Network``."""
        assert self._pool is not None, "attach() comes first"
        self._batch = batch
        self._attention = self._make_attention(batch)
        return self._call(batch)

    def reference(self, ids: Tensor) -> Tensor:
        """Return the logits [T, vocabulary] of one sequence by the model's own attention."""
        self._network.set_attn_implementation(self._own_attention)
        logits: Tensor = self._network(input_ids=ids[None], use_cache=False).logits
        return logits[0].float()

    def _call(self, batch: Batch, name: str | None = None) -> Tensor:
        """Run the model with the attention function of this name, without one with our own."""
        name = name or self._name
        if self._network.config._attn_implementation != name:  # noqa: SLF001
            self._network.set_attn_implementation(name)
        output: Any = self._network(
            input_ids=batch.ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.rows,
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def _attend(  # noqa: PLR0913 - transformers' signature
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Be transformers' attention function: [1, heads, T, dim] in, [1, T, heads, dim] out."""
        _refuse_extras(options)
        assert self._pool is not None
        assert self._batch is not None
        assert self._attention is not None
        keys, values = self._pool.layer(self._layers[id(module)])
        store(keys, values, self._batch, key[0].transpose(0, 1), value[0].transpose(0, 1))
        scoring = Scoring(scaling, sliding_window, softcap)
        out = self._attention(query[0].transpose(0, 1), keys, values, scoring)
        return out[None], None


def _detached(*_args: Any, **_options: Any) -> tuple[Tensor, None]:
    raise RuntimeError("this network was given up for a faster one")


def _refuse_extras(options: dict[str, Any]) -> None:
    """Refuse what some models add to attention, rather than leave it out."""
    for name in ("s_aux", "position_bias", "head_mask"):
        if options.get(name) is not None:
            raise UnsupportedModel(f"its attention needs {name}")


def _one_token(device: torch.device) -> Batch:
    def tensor(values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Batch(
        ids=tensor([0]),
        positions=tensor([0]),
        blocks=tensor([0]),
        offsets=tensor([0]),
        starts=tensor([0, 1], torch.int32),
        lengths=tensor([1], torch.int32),
        tables=tensor([0], torch.int32)[None],
        rows=tensor([0]),
        max_query_len=1,
        max_length=1,
    )
