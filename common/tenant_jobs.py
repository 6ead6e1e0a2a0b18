"""The list of a tenant's jobs, newest first, which forgets what retention has ended."""

from redis.asyncio import Redis

from common.keys import Keys
from common.settings import Settings

MARGIN_S = 3_600


class TenantJobs:
    """Adds to the lists. Raises redis-py's errors unchanged."""

    def __init__(self, redis: Redis, keys: Keys, settings: Settings) -> None:
        self._redis = redis
        self._keys = keys
        self._lifetime_s = settings.max_deadline_s + settings.retention_s

    async def add(self, tenant: str, job_id: str, created_ms: int) -> None:
        """Put the job on its tenant's list; what is older than any job can be leaves it."""
        name, lifetime_s = self._keys.tenant_jobs(tenant), self._lifetime_s + MARGIN_S
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zadd(name, {job_id: created_ms})
            pipeline.zremrangebyscore(name, "-inf", created_ms - lifetime_s * 1000)
            pipeline.expire(name, round(lifetime_s))
            await pipeline.execute()
