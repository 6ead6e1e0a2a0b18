"""From a loaded model to one that runs over paged blocks, on the fastest path that can do it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
import torch

from common.errors import StartupFailed
from worker.engine.options import EngineOptions, Quantize
from worker.engine.protocol import Progress
from worker.kv.pool import KvPool, KvShape
from worker.model import flash
from worker.model.attention import GatheredAttention, UnsupportedAttention
from worker.model.batch import Network
from worker.model.generic import GenericNetwork, UnsupportedModel
from worker.model.graphs import GraphedNetwork
from worker.model.loading import LoadedModel
from worker.model.memory import num_blocks
from worker.model.trial import LENGTH, Trial

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PagedModel:
    """A network and the blocks that it writes to; ``path`` says how it computes."""

    network: Network
    pool: KvPool
    num_blocks: int  # of the pool, without the one that nobody reads
    path: str


def build_network(model: LoadedModel, options: EngineOptions, progress: Progress) -> PagedModel:
    """Return the model over a pool of blocks; raises ``StartupFailed`` for what cannot be paged.

    A path is taken only if it computes, over paged blocks and in parts, what the model computes
    by its own means.
    """
    try:
        with torch.inference_mode():
            generic = GenericNetwork(model.network)
            shape = _shape(generic, model, options)
        number = num_blocks(shape, model, options)
        least = -(-LENGTH // shape.block_tokens)
        pool = KvPool(shape, max(number + 1, least), model.device)
        generic.attach(pool)
        with torch.inference_mode():
            trial = Trial(generic, pool)
            path, network = _choose(generic, model, pool, options, trial, progress)
    except UnsupportedModel as error:
        raise StartupFailed(
            f"{model.name} ({model.network.config.model_type}) cannot be served: {error}. "
            "The engine runs decoder models with plain causal attention."
        ) from error
    if path.startswith("fused"):
        generic.detach()
    _log.info("network_ready", path=path, blocks=number)
    return PagedModel(network, pool, number, path)


# They take their factors from the greatest position of a whole batch.
_SHIFTING_ROPES = frozenset({"dynamic", "longrope"})


def _rope_types(model: LoadedModel) -> frozenset[str]:
    found = (getattr(module, "rope_type", None) for module in model.network.modules())
    return frozenset(kind for kind in found if isinstance(kind, str))


def _shape(generic: GenericNetwork, model: LoadedModel, options: EngineOptions) -> KvShape:
    if model.network.config.is_encoder_decoder:
        raise UnsupportedModel("it is an encoder-decoder model")
    if kinds := _rope_types(model) & _SHIFTING_ROPES:
        kind = min(kinds)
        raise UnsupportedModel(f"its {kind} rotary embedding depends on the longest neighbour")
    layers = generic.measure()
    if len(set(layers)) > 1:
        raise UnsupportedModel("its layers have KV tensors of different sizes")
    is_flash = flash.supports(model.device, model.dtype)
    block_tokens = flash.BLOCK_TOKENS if is_flash else options.block_tokens
    first = layers[0]
    return KvShape(len(layers), first.num_heads, first.head_dim, block_tokens, model.dtype)


_Path = tuple[str, Callable[[], Network], bool]
"""A path's name, what builds it, and whether it quantises."""


def _choose(
    generic: GenericNetwork,
    model: LoadedModel,
    pool: KvPool,
    options: EngineOptions,
    trial: Trial,
    progress: Progress,
) -> tuple[str, Network]:
    for name, build, is_quantized in _paths(generic, model, pool, options):
        progress(f"preparing ({name})", 0.0)
        try:
            network = build()
            if trial.passes(network, is_quantized=is_quantized):
                return name, network
            reason = "it computes something else"
        except (UnsupportedAttention, RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0]
        _log.warning("path_refused", path=name, reason=reason)
    raise UnsupportedModel("over paged blocks it computes something else")


def _paths(
    generic: GenericNetwork, model: LoadedModel, pool: KvPool, options: EngineOptions
) -> Iterator[_Path]:
    """Yield the ways to run the model, the fastest first."""
    quantize = options.quantize
    if model.device.type == "cpu" and model.dtype == torch.float32:
        yield from _fused_paths(model, pool, quantize)
    if quantize in ("int8", "int4"):
        raise UnsupportedModel(
            f"--quantize {quantize} is for models of the Llama family in float32 on a CPU"
        )
    if flash.supports(model.device, model.dtype):
        yield "flash, graphs", lambda: _graphed(generic, model, pool, options), False
        yield "flash", lambda: _with_flash(generic), False
    yield "generic", lambda: _with_gathering(generic), False


def _fused_paths(model: LoadedModel, pool: KvPool, quantize: Quantize) -> Iterator[_Path]:
    # Imported where it is needed: numba takes a second.
    from worker.model.fused.llama import FusedLlama  # noqa: PLC0415
    from worker.model.fused.weights import supports  # noqa: PLC0415

    if not supports(model.network):
        return
    if quantize in ("auto", "int8"):
        yield "fused int8", lambda: FusedLlama(model, pool, "int8"), True
    if quantize == "int4":
        yield "fused int4", lambda: FusedLlama(model, pool, "int4"), True
    if quantize in ("auto", "none"):
        yield "fused", lambda: FusedLlama(model, pool, "none"), False


def _with_flash(generic: GenericNetwork) -> Network:
    generic.make_attention = flash.FlashAttention
    return generic


def _with_gathering(generic: GenericNetwork) -> Network:
    generic.make_attention = GatheredAttention
    return generic


def _graphed(
    generic: GenericNetwork, model: LoadedModel, pool: KvPool, options: EngineOptions
) -> Network:
    block_tokens = pool.shape.block_tokens
    max_blocks = -(-model.context_len // block_tokens)
    graphed = GraphedNetwork(
        _with_flash(generic), options.capacity, max_blocks, pool.num_blocks - 1
    )
    graphed.capture(model.device, block_tokens)
    return graphed
