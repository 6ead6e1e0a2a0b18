"""The workers that live: their leases, what they say of themselves, and the models they serve."""

import enum
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError

from common.keys import Keys
from common.scripts import Script

MODEL_MEMORY_S = 86_400

_RENEW = Script("renew", shared=("clock",))


class WorkerState(enum.StrEnum):
    """What a worker is doing."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"


class KvCacheInfo(msgspec.Struct, frozen=True):
    """The KV cache of a worker. Blocks are those on the device; sizes are bytes.

    ``blocks_used`` belong to running jobs, ``blocks_cached`` to ended ones and can be had back.
    ``query_tokens`` are the prompt tokens asked for so far, ``hit_tokens`` those that were found,
    in whatever tier. ``dropped_blocks`` are those that found the disk too slow.
    """

    block_tokens: int
    blocks: int
    blocks_used: int = 0
    blocks_cached: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    host_limit: int = 0
    disk_bytes: int = 0
    disk_limit: int = 0
    preemptions: int = 0
    dropped_blocks: int = 0


class WorkerInfo(msgspec.Struct, frozen=True):
    """What a worker says of itself with every heartbeat. New fields go last, with a default."""

    id: str
    host: str
    pid: int
    model: str
    version: str
    engine: str
    device: str
    dtype: str
    state: WorkerState
    progress: str
    capacity: int
    running: int
    context_len: int
    tokens_per_s: float
    jobs_done: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    waiting: int = 0
    kv: KvCacheInfo | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(WorkerInfo)


class Heartbeat:
    """The writing side, for the lease thread: blocking calls on its own connection."""

    def __init__(self, redis: SyncRedis, keys: Keys, lease_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._lease_ms = round(lease_s * 1000)

    def join(self, info: WorkerInfo) -> None:
        """Take a first lease under a fresh worker ID."""
        self._renew(info, "join")

    def renew(self, info: WorkerInfo) -> bool:
        """Renew the lease and the worker's hash; False when the sweep has removed the worker."""
        return self._renew(info, "renew")

    def leave(self, worker_id: str, model: str) -> None:
        """Drop the lease; the worker must hold nothing any more."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(self._keys.model(model).workers, worker_id)
            pipeline.srem(self._keys.model(model).draining, worker_id)
            pipeline.execute()
        self._redis.delete(self._keys.worker(worker_id))

    def _renew(self, info: WorkerInfo, mode: str) -> bool:
        reply = self._run([self._keys.model(info.model).workers], [info.id, self._lease_ms, mode])
        if reply[0] != b"OK":
            return False
        # Two transactions, because in a cluster the two keys are in two slots.
        with self._redis.pipeline(transaction=True) as pipeline:
            key = self._keys.worker(info.id)
            pipeline.hset(key, mapping={"info": _encoder.encode(info), "beat_ms": reply[1]})
            pipeline.pexpire(key, self._lease_ms)
            pipeline.execute()
            pipeline.zadd(self._keys.models, {info.model: reply[1]})
            forgotten_ms = int(reply[1]) - MODEL_MEMORY_S * 1000
            pipeline.zremrangebyscore(self._keys.models, "-inf", forgotten_ms)
            pipeline.expire(self._keys.models, MODEL_MEMORY_S)
            pipeline.execute()
        return True

    def _run(self, keys: list[str], args: list[Any]) -> Any:
        try:
            return self._redis.evalsha(_RENEW.sha, len(keys), *keys, *args)
        except NoScriptError:
            return self._redis.eval(_RENEW.text, len(keys), *keys, *args)


def read_clock(reply: Sequence[Any]) -> int:
    """Return the answer to ``TIME`` in milliseconds."""
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000


class LiveWorker(msgspec.Struct, frozen=True):
    """A worker as the registry sees it; ``lease_s`` seconds of its lease are left."""

    info: WorkerInfo
    lease_s: float


class Registry:
    """The reading side, for gateways and sweeping workers."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def now_ms(self) -> int:
        """Return Redis's clock in milliseconds."""
        return read_clock(await self._redis.time())

    async def uptime_s(self) -> float:
        """Return for how many seconds the server has been up, infinity where it does not say."""
        try:
            info = await self._redis.info("server")
        except NoPermissionError:
            return math.inf
        return float(info["uptime_in_seconds"])

    async def models(self) -> dict[str, int]:
        """Return the models of the last day with the end (ms) of their last lease."""
        found = await self._redis.zrange(self._keys.models, 0, -1, withscores=True)
        return {name.decode(): int(score) for name, score in found}

    async def dead(self, model: str) -> list[str]:
        """Return the workers whose lease is over and whose work is not yet swept."""
        leases, now_ms = await self._leases(model)
        return [worker_id for worker_id, until_ms in leases.items() if until_ms <= now_ms]

    async def is_alive(self, model: str, worker_id: str) -> bool:
        """Tell whether the worker's lease runs."""
        return worker_id in await self.alive(model)

    async def alive(self, model: str) -> list[str]:
        """Return the model's workers whose leases run."""
        leases, now_ms = await self._leases(model)
        return [worker_id for worker_id, ends_ms in leases.items() if ends_ms > now_ms]

    async def workers(self) -> list[LiveWorker]:
        """Return the live workers of all models, by model and ID."""
        found: list[LiveWorker] = []
        for model in sorted(await self.models()):
            leases, now_ms = await self._leases(model)
            for worker_id in sorted(leases):
                left_s = (leases[worker_id] - now_ms) / 1000
                data = await self._redis.hget(self._keys.worker(worker_id), "info")  # type: ignore[misc]
                if left_s > 0 and data is not None:
                    found.append(LiveWorker(_decoder.decode(data), left_s))
        return found

    async def _leases(self, model: str) -> tuple[dict[str, float], int]:
        """Return when each worker's lease ends, and the time (ms), by the clock that wrote them."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(self._keys.model(model).workers, 0, -1, withscores=True)
            pipeline.time()  # in a cluster at the same node: it goes where the command before goes
            leases, clock = await pipeline.execute()
        return {worker_id.decode(): until_ms for worker_id, until_ms in leases}, read_clock(clock)

    async def take_sweep(self, model: str, worker_id: str, lease_s: float) -> bool:
        """Become, for one lease, the worker that sweeps; False when another one is."""
        key = self._keys.model(model).sweeper
        return bool(await self._redis.set(key, worker_id, nx=True, px=round(lease_s * 1000)))
