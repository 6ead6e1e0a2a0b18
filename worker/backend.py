"""What a worker uses of Redis, in one hand."""

from dataclasses import dataclass

from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from common.lanes import Lanes
from common.prompts import PROMPT_TTL_S, PromptIndex
from common.registry import Registry

RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Backend:
    """The typed callers for one model."""

    keys: Keys
    model: str
    store: JobStore
    lanes: Lanes
    registry: Registry
    prompts: PromptIndex

    @classmethod
    def on(
        cls, redis: Redis, keys: Keys, model: str, *, prompt_ttl_s: float = PROMPT_TTL_S
    ) -> "Backend":
        """Return the callers over one command client."""
        return cls(
            keys,
            model,
            JobStore(redis, keys),
            Lanes(redis, keys, model),
            Registry(redis, keys),
            PromptIndex(redis, keys, model, prompt_ttl_s),
        )
