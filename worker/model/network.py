"""From a loaded model to one that runs over paged blocks: the fastest path that can do it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import StartupFailed
from worker.engine.options import EngineOptions
from worker.kv.pool import KvPool, KvShape
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork, UnsupportedModel
from worker.model.loading import LoadedModel
from worker.model.memory import num_blocks

# Longer than two blocks, and no multiple of one.
_TRIAL_LEN = 43
# Of the greatest logit: what rounding may change in the numbers of the model.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class PagedModel:
    """A network and the blocks that it writes to."""

    network: Network
    pool: KvPool


def build_network(model: LoadedModel, options: EngineOptions) -> PagedModel:
    """Return the model over a pool of blocks; raises ``StartupFailed`` for what cannot be paged.

    Whatever path is chosen, its logits are compared with the model's own first.
    """
    try:
        generic = GenericNetwork(model.network)
        with torch.inference_mode():
            shape = _shape(generic, model, options.block_tokens)
        pool = KvPool(shape, num_blocks(shape, model, options), model.device)
        generic.attach(pool)
        with torch.inference_mode():
            _compare(generic, generic, pool, _TOLERANCE[model.dtype])
    except UnsupportedModel as error:
        raise StartupFailed(
            f"{model.name} ({model.network.config.model_type}) cannot be served: {error}. "
            "The engine runs decoder models with plain causal attention."
        ) from error
    return PagedModel(generic, pool)


def _shape(generic: GenericNetwork, model: LoadedModel, block_tokens: int) -> KvShape:
    if model.network.config.is_encoder_decoder:
        raise UnsupportedModel("it is an encoder-decoder model")
    layers = generic.measure()
    if len(set(layers)) > 1:
        raise UnsupportedModel("its layers have KV tensors of different sizes")
    first = layers[0]
    return KvShape(len(layers), first.num_heads, first.head_dim, block_tokens, model.dtype)


def _compare(
    generic: GenericNetwork, network: Network, pool: KvPool, tolerance: float
) -> None:
    """Run a text in three parts, and compare with the model's own attention over all of it."""
    device = pool.blocks.device
    vocab_len = generic.vocab_len
    ids = torch.arange(7, 7 + 31 * _TRIAL_LEN, 31, device=device) % vocab_len
    expected = generic.reference(ids)
    for start, end in ((0, 20), (20, _TRIAL_LEN - 1), (_TRIAL_LEN - 1, _TRIAL_LEN)):
        logits = network.forward(_trial(ids, start, end, pool.shape.block_tokens))
        error = (logits[0] - expected[end - 1]).abs().max().item()
        if not error <= tolerance * max(1.0, expected[end - 1].abs().max().item()):
            raise UnsupportedModel("over paged blocks it computes something else")


def _trial(ids: Tensor, start: int, end: int, block_tokens: int) -> Batch:
    """Return a batch with a part of one sequence, in the pool's first blocks, from behind."""
    device = ids.device
    positions = torch.arange(start, end, device=device)
    table = torch.arange(-(-_TRIAL_LEN // block_tokens), device=device).flip(0)
    return Batch(
        ids=ids[start:end],
        positions=positions,
        blocks=table[positions // block_tokens],
        offsets=positions % block_tokens,
        starts=torch.tensor([0, end - start], dtype=torch.int32, device=device),
        lengths=torch.tensor([end], dtype=torch.int32, device=device),
        tables=table[None].int(),
        rows=torch.tensor([end - start - 1], device=device),
        max_query_len=end - start,
        max_length=end,
    )
