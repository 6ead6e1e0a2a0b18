"""From a loaded model to one that runs over paged blocks, on the fastest path that can do it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import torch

from common.errors import StartupFailed
from worker.engine.options import EngineOptions
from worker.engine.protocol import Progress
from worker.kv.pool import KvPool, KvShape
from worker.model import flash
from worker.model.attention import Attention, GatheredAttention, UnsupportedAttention
from worker.model.batch import Batch, Network
from worker.model.fused.layout import Quantize
from worker.model.generic import GenericNetwork, LayerShape, UnsupportedModel
from worker.model.graphs import GraphedNetwork
from worker.model.llama import MergedLlama, is_llama
from worker.model.loading import LoadedModel
from worker.model.memory import num_blocks
from worker.model.trial import Trial, num_trial_blocks

_log = structlog.get_logger()

# They take their factors from the greatest position of a whole batch.
_SHIFTING_ROPES = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Path:
    """A way to run the model. ``build`` may raise where it finds that it cannot."""

    name: str
    build: Callable[[KvPool], Network]
    kv_dtype: torch.dtype
    quantize: Quantize = "none"


@dataclass(frozen=True, slots=True)
class PagedModel:
    """A network and the blocks that it writes to; ``path`` says how it computes."""

    network: Network
    pool: KvPool
    num_blocks: int  # of the pool, without the one that nobody reads
    path: Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The ways to run one model whose layers have KV tensors of one shape."""

    generic: GenericNetwork
    model: LoadedModel
    layers: Sequence[LayerShape]
    options: EngineOptions

    def choose(self, progress: Progress) -> PagedModel:
        """Return the model on the fastest path that passes the trial."""
        pool: KvPool | None = None
        refusals = []
        for path in self._all():
            progress(f"preparing ({path.name})", 0.0)
            if pool is None or pool.shape.dtype != path.kv_dtype:
                pool, number = self._make_pool(path.kv_dtype)
                self.generic.attach(pool)
                trial = Trial(self.generic, pool, self.model.context_len)
            try:
                network = path.build(pool)
                if trial.passes(network, is_quantized=path.quantize != "none"):
                    return PagedModel(network, pool, number, path)
                reason = "over paged blocks it computes something else"
            except (UnsupportedAttention, RuntimeError) as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            _log.warning("path_refused", path=path.name, reason=reason)
            refusals.append(f"{path.name}: {reason}")
        raise UnsupportedModel("; ".join(refusals))

    def _make_pool(self, dtype: torch.dtype) -> tuple[KvPool, int]:
        """Return a pool, and how many of its blocks may hold sequences."""
        is_flash = flash.supports(self.model.device, dtype)
        block_tokens = flash.BLOCK_TOKENS if is_flash else self.options.block_tokens
        first = self.layers[0]
        shape = KvShape(len(self.layers), first.num_heads, first.head_dim, block_tokens, dtype)
        number = num_blocks(shape, self.model, self.options)
        least = num_trial_blocks(block_tokens, self.model.context_len)
        return KvPool(shape, max(number, least) + 1, self.model.device), number

    def _all(self) -> Iterator[Path]:
        """Yield the fastest first; who asks for small weights is not given large ones."""
        device, dtype, quantize = self.model.device, self.model.dtype, self.options.quantize
        fused = list(self._fused()) if device.type == "cpu" and dtype == torch.float32 else []
        yield from fused
        if quantize in ("int8", "int4"):
            if not fused:
                raise UnsupportedModel(
                    f"--quantize {quantize} is for models of the Llama family in float32 on a CPU"
                )
            return
        if flash.supports(device, dtype):
            yield from self._flash(dtype)
        for name, build in self._in_torch(GatheredAttention):
            yield Path(name, build, dtype)

    def _flash(self, dtype: torch.dtype) -> Iterator[Path]:
        grouped, plain = flash.GroupedFlashAttention, flash.FlashAttention
        for kind, make_attention in (("grouped flash", grouped), ("flash", plain)):
            for name, build in self._in_torch(make_attention):
                yield Path(f"{name}, {kind}, graphs", partial(self._graphed, build), dtype)
        for name, build in self._in_torch(plain):
            yield Path(f"{name}, flash", build, dtype)

    def _in_torch(
        self, make_attention: Callable[[Batch], Attention]
    ) -> Iterator[tuple[str, Callable[[KvPool], Network]]]:
        """Yield the ways to run the model in torch's operators, with attention computed so."""
        network = self.model.network
        if is_llama(network):
            yield "merged", lambda pool: MergedLlama(network, pool, make_attention)
        yield "generic", lambda _pool: self.generic.using(make_attention)

    def _fused(self) -> Iterator[Path]:
        # Imported where it is needed: numba takes a second.
        from worker.model.fused.llama import KV_DTYPES, FusedLlama  # noqa: PLC0415
        from worker.model.fused.weights import supports  # noqa: PLC0415

        if not supports(self.model.network):
            return
        asked = self.options.quantize
        kinds: tuple[Quantize, ...] = ("int8", "none") if asked == "auto" else (asked,)
        for kind in kinds:
            build = partial(
                FusedLlama, self.model, quantize=kind, cache_dir=self.options.cache_dir / "kernels"
            )
            name = "fused" if kind == "none" else f"fused {kind}"
            yield Path(name, build, KV_DTYPES[kind], kind)

    def _graphed(self, build: Callable[[KvPool], Network], pool: KvPool) -> Network:
        block_tokens = pool.shape.block_tokens
        max_blocks = -(-self.model.context_len // block_tokens)
        graphed = GraphedNetwork(
            build(pool), self.options.capacity, max_blocks, pool.num_blocks - 1
        )
        graphed.capture(self.model.device, block_tokens)
        return graphed


def build_network(model: LoadedModel, options: EngineOptions, progress: Progress) -> PagedModel:
    """Return the model over a pool of blocks; raises ``StartupFailed`` for what cannot be paged.

    A path is taken only if it computes, over paged blocks and in parts, what the model computes
    by its own means.
    """
    try:
        with torch.inference_mode():
            generic = GenericNetwork(model.network)
            layers = _layers(generic, model)
            paged = Paths(generic, model, layers, options).choose(progress)
    except UnsupportedModel as error:
        raise StartupFailed(
            f"{model.name} ({model.network.config.model_type}) cannot be served: {error}. "
            "The engine runs decoder models with plain causal attention."
        ) from error
    if paged.path.name.startswith("fused"):
        generic.detach()
    _log.info("network_ready", path=paged.path.name, blocks=paged.num_blocks)
    return paged


def _rope_types(model: LoadedModel) -> frozenset[str]:
    found = (getattr(module, "rope_type", None) for module in model.network.modules())
    return frozenset(kind for kind in found if isinstance(kind, str))


def _layers(generic: GenericNetwork, model: LoadedModel) -> Sequence[LayerShape]:
    """Return the shapes of the layers' KV tensors; raises ``UnsupportedModel``."""
    if model.network.config.is_encoder_decoder:
        raise UnsupportedModel("it is an encoder-decoder model")
    if kinds := _rope_types(model) & _SHIFTING_ROPES:
        kind = min(kinds)
        raise UnsupportedModel(f"its {kind} rotary embedding depends on the longest neighbour")
    layers = generic.measure(model.context_len)
    if len(set(layers)) > 1:
        raise UnsupportedModel("its layers have KV tensors of different sizes")
    return layers
