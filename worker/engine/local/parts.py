"""The parts of the local engine that need torch. Importing this module takes seconds."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Semaphore

import torch

from common.registry import KvCacheInfo
from worker.engine.daemon import in_daemon
from worker.engine.local.core import EngineCore
from worker.engine.local.intake import Intake, Limits, Prepared
from worker.engine.local.made import Made
from worker.engine.local.scheduler import Scheduler
from worker.engine.local.thread import Call, EngineThread
from worker.engine.local.tokenizer import Tokenizer
from worker.engine.options import EngineOptions
from worker.engine.protocol import EngineInfo, EngineStats, Progress, Refused, Request
from worker.kv.cache import KvCache
from worker.kv.chain import BlockKey
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier
from worker.kv.pool import KvPool
from worker.kv.table import Table
from worker.kv.tiers import Tiers
from worker.model.checkpoint import Checkpoint
from worker.model.fingerprint import fingerprint
from worker.model.loading import LoadedModel, load_model
from worker.model.network import PagedModel, build_network

# That look and read at once: one that hangs in the disk never comes back.
MAX_DISK_THREADS = 32
# How long a worker that stops writes its cache to the disk.
_SAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Unseen:
    """A prompt of which the blocks with these names are not on the device."""

    table: Table
    ids: list[int]
    missing: list[BlockKey]


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded engine."""

    info: EngineInfo
    tokenizer: Tokenizer
    intake: Intake
    core: EngineCore
    thread: EngineThread
    pool: KvPool
    tiers: Tiers | None
    options: EngineOptions
    forgetting: asyncio.Lock = field(default_factory=asyncio.Lock)
    disk_threads: Semaphore = field(default_factory=partial(Semaphore, MAX_DISK_THREADS))

    def probe(self, request: Request) -> str | Unseen:
        """Return how much of the prompt is cached, or what to ``look`` for to tell.

        Off the engine's thread, so only a guess.
        """
        try:
            table, ids = self.intake.table(request)
        except Exception:  # noqa: BLE001 - ``prepare`` will say what is wrong with it
            return ""
        missing = self._missing(self.core.cache.names(table, ids)) if self.tiers else []
        return Unseen(table, ids, missing) if missing else self._found(table, ids)

    def look(self, unseen: Unseen) -> str:
        """Return how much of a prompt is cached, with what others wrote to the disk.

        Takes as long as the disk takes.
        """
        assert self.tiers is not None
        self._at_disk(partial(self.tiers.look, unseen.missing))
        return self._found(unseen.table, unseen.ids)

    def _found(self, table: Table, ids: list[int]) -> str:
        found = self.core.cache.lookup(table, ids)
        if not found:
            return "miss"
        return "hit" if found == len(ids) - 1 else "partial"

    def prepare(self, request: Request, order: int) -> Prepared | Refused:
        """See ``Intake.prepare``; also finds what of the request is on disk. Off the loop."""
        prepared = self.intake.prepare(request, order)
        if self.tiers is None or isinstance(prepared, Refused) or not prepared.sequences:
            return prepared
        first = prepared.sequences[0]
        names = self.core.cache.names(first.table, first.ids)
        self.tiers.use(names)
        on_disk = tuple(name for name in self._missing(names) if self.tiers.is_on_disk_only(name))
        return replace(prepared, on_disk=on_disk)

    def fetch(self, names: Sequence[BlockKey]) -> None:
        """Read blocks into host memory, as far as they have room there. Takes its time."""
        assert self.tiers is not None
        self._at_disk(partial(self.tiers.prefetch, names))

    def _at_disk(self, work: Callable[[], object]) -> None:
        """Let the disk work, unless it hangs with as many as may wait for it."""
        if self.disk_threads.acquire(blocking=False):
            try:
                work()
            finally:
                self.disk_threads.release()

    def _missing(self, names: Sequence[BlockKey]) -> list[BlockKey]:
        """Return the names of the blocks that are not on the device."""
        return [name for name in names if not self.core.cache.is_on_device(name)]

    async def forget(self, tenant: str, ids: tuple[int, ...]) -> None:
        """Drop the blocks of a sequence from every tier, where nobody holds them.

        Requests that come later find none of them on the device. The model's thread does no more
        of it than it must: a long sequence has many names.
        """
        cache, table = self.core.cache, self.intake.table_of(tenant)
        dropping = Call(partial(cache.forget, table, ids))
        self.thread.post(dropping)
        await asyncio.wrap_future(dropping.called)
        async with self.forgetting:  # for each of them wants the interpreter's lock all the time
            await in_daemon(partial(cache.forget_below, table, ids), "kv-forgetter")

    def save(self) -> None:
        """Write to the disk what is cached; the thread must have ended."""
        if self.tiers is not None:
            self.core.cache.offload()
            self.tiers.flush(_SAVE_S)
            self.tiers.close()

    def stats(self, num_requests: int, tokens_per_s: float) -> EngineStats:
        """Return the current load: another thread's figures, each right, not all at once."""
        core = self.core
        return EngineStats(
            running=core.scheduler.num_running,
            waiting=max(core.scheduler.num_waiting, num_requests - core.scheduler.num_running),
            tokens_per_s=tokens_per_s,
            prefill_tokens_per_s=core.prefill_tokens / core.prefill_s if core.prefill_s else 0.0,
            kv=self._kv_info(),
            model_s=core.model_s,
        )

    def _kv_info(self) -> KvCacheInfo:
        cache, tiers, options = self.core.cache, self.tiers, self.options
        hits = cache.hits
        return KvCacheInfo(
            block_tokens=cache.block_tokens,
            blocks=cache.manager.num_blocks,
            blocks_used=cache.manager.num_used,
            blocks_cached=cache.manager.num_cached,
            query_tokens=hits.queried,
            hit_tokens=hits.device + hits.host + hits.disk,
            host_hit_tokens=hits.host,
            disk_hit_tokens=hits.disk,
            device_bytes=self.pool.blocks.nbytes,
            host_bytes=tiers.host_bytes if tiers else 0,
            host_limit=options.kv_host_bytes,
            disk_bytes=tiers.disk_bytes if tiers else 0,
            disk_limit=options.kv_disk_bytes,
            preemptions=self.core.scheduler.num_preemptions,
            dropped_blocks=tiers.num_dropped if tiers else 0,
        )


def read_parts(
    checkpoint: Checkpoint,
    options: EngineOptions,
    progress: Progress,
    deliver: Callable[[list[Made]], None],
) -> Parts:
    """Load the model and build the engine around it; raises ``StartupFailed``."""
    model = load_model(checkpoint, options, progress)
    paged = build_network(model, options, progress)
    limits = _limits(model, paged)
    tiers = _tiers(options, paged.pool)
    cache = KvCache(paged.num_blocks, limits.block_tokens, paged.pool, tiers)
    scheduler = Scheduler(cache, options.capacity, options.step_tokens)
    core = EngineCore(paged.network, cache, scheduler, model.device, options.threads)
    tokenizer = Tokenizer(model.tokenizer)
    info = EngineInfo(
        model=model.name,
        device=str(model.device),
        dtype=_name(model.dtype) if paged.path.quantize == "none" else paged.path.quantize,
        context_len=min(limits.context_len, limits.cache_tokens),
        capacity=options.capacity,
    )
    return Parts(
        info,
        tokenizer,
        Intake(tokenizer, limits),
        core,
        EngineThread(core, deliver),
        paged.pool,
        tiers,
        options,
    )


def _limits(model: LoadedModel, paged: PagedModel) -> Limits:
    block_tokens = paged.pool.shape.block_tokens
    return Limits(
        context_len=model.context_len,
        vocab_len=model.network.get_input_embeddings().num_embeddings,
        eos_ids=model.eos_ids,
        cache_tokens=paged.num_blocks * block_tokens,
        block_tokens=block_tokens,
        fingerprint=fingerprint(model),
        # Quantised weights make other KV tensors.
        dtype=f"{_name(paged.pool.shape.dtype)} {paged.path.name}",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tiers(options: EngineOptions, pool: KvPool) -> Tiers | None:
    if not options.kv_host_bytes and not options.kv_disk_bytes:
        return None
    # One directory, and one limit, for all models: their blocks have different names.
    disk = DiskTier(options.cache_dir / "kv", options.kv_disk_bytes, pool.shape)
    return Tiers(HostTier(options.kv_host_bytes), disk)
