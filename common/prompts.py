"""What prompt IDs stand for: the token IDs of a conversation, and who holds its tensors.

An entry is a hint about tensors (a wrong one costs a prefill) and the truth about token IDs. It is
scoped by tenant and model, and lives for its time after the last use.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from common.keys import Keys, scoped, unscoped
from common.scripts import Argument, Script
from common.token_ids import pack_ids, unpack_ids

PROMPT_TTL_S = 86_400.0

_COMMIT = Script("commit_prompt", shared=("clock",))
_FORGET = "forget:"
_FIELDS = ("version", "worker", "job", "length", "recompute_ms", "updated_ms")


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """What is stored under a prompt ID. Times are milliseconds of Redis's clock.

    ``version`` counts the jobs that committed, from 1; ``job`` was the last. ``worker`` made the
    sequence and holds its tensors. Recomputing them would take ``recompute_ms`` (0: not known).
    ``ttl_ms`` are left. ``ids`` is empty unless asked for.
    """

    version: int
    worker: str
    job: str
    length: int
    recompute_ms: int
    updated_ms: int
    ttl_ms: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Commit:
    """The sequence of a completed job, as the worker with this epoch made it."""

    job: str
    epoch: int
    worker: str
    ids: tuple[int, ...]
    recompute_ms: int = 0


def forget_message(tenant: str, ids: Sequence[int]) -> str:
    """Return what a worker's control channel says when a sequence's tensors are to be dropped.

    The token IDs are in it: a worker that restarted knows its blocks by them alone.
    """
    return _FORGET + scoped(tenant, b64encode(pack_ids(ids)).decode())


def read_forget(message: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the tenant and the token IDs of ``forget_message``, None for another message."""
    if not message.startswith(_FORGET):
        return None
    tenant, packed = unscoped(message.removeprefix(_FORGET))
    return tenant, unpack_ids(b64decode(packed))


class PromptIndex:
    """The prompt IDs of one model. Raises redis-py's errors unchanged."""

    def __init__(self, redis: Redis, keys: Keys, model: str, ttl_s: float = PROMPT_TTL_S) -> None:
        self._redis = redis
        self._keys = keys.model(model)
        self._ttl_ms = round(ttl_s * 1000)

    async def read(
        self, tenant: str, prompt_id: str, *, with_ids: bool = False
    ) -> StoredPrompt | None:
        """Return what is stored, or None."""
        key = self._keys.prompt(tenant, prompt_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(key, [*_FIELDS, "ids"] if with_ids else list(_FIELDS))
            pipeline.pttl(key)
            fields, ttl_ms = await pipeline.execute()
        return _stored(fields, ttl_ms) if fields[0] is not None else None

    async def use(self, tenant: str, prompt_id: str) -> StoredPrompt | None:
        """Return what is stored, with its token IDs, and keep it for its time from now on."""
        key = self._keys.prompt(tenant, prompt_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(key, [*_FIELDS, "ids"])
            pipeline.pexpire(key, self._ttl_ms)
            fields, _ = await pipeline.execute()
        return _stored(fields, self._ttl_ms) if fields[0] is not None else None

    async def commit(self, tenant: str, prompt_id: str, sequence: Commit) -> int:
        """Store the sequence and return its version; the same job again has the same version."""
        fields: dict[str, Argument] = {
            "worker": sequence.worker,
            "length": len(sequence.ids),
            "ids": pack_ids(sequence.ids),
            "recompute_ms": sequence.recompute_ms,
        }
        args: list[Argument] = [self._ttl_ms, sequence.job, sequence.epoch]
        args += [part for field in fields.items() for part in field]
        return int(await _COMMIT.run(self._redis, [self._keys.prompt(tenant, prompt_id)], args))

    async def forget(self, tenant: str, prompt_id: str) -> StoredPrompt | None:
        """Forget the prompt ID; returns what was stored with its token IDs, or None."""
        key = self._keys.prompt(tenant, prompt_id)
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(key, [*_FIELDS, "ids"])
            pipeline.delete(key)
            fields, _ = await pipeline.execute()
        return _stored(fields, 0) if fields[0] is not None else None


def _stored(fields: list[bytes], ttl_ms: int) -> StoredPrompt:
    version, worker, job, length, recompute_ms, updated_ms, *ids = fields
    return StoredPrompt(
        version=int(version),
        worker=worker.decode(),
        job=job.decode(),
        length=int(length),
        recompute_ms=int(recompute_ms),
        updated_ms=int(updated_ms),
        ttl_ms=ttl_ms,
        ids=unpack_ids(ids[0]) if ids else (),
    )
