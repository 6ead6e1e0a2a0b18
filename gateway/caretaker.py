"""What nobody else would do for accepted jobs, and ``202`` is a promise.

It ends overdue jobs of models that have no worker, and looks after those that a restart of Redis
may have taken out of their lane.
"""

import asyncio
import random

import structlog
from redis.asyncio import Redis

from common.connections import UNAVAILABLE
from common.endings import end_overdue
from common.job_store import JobStore
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Registry
from gateway.recovery import Recovery

_log = structlog.get_logger()

PASS_S = 5.0


class Caretaker:
    """Runs in every gateway; where workers live, their sweep does the same, sooner."""

    def __init__(self, redis: Redis, keys: Keys, default_model: str) -> None:
        self._redis = redis
        self._keys = keys
        self._default_model = default_model
        self._store = JobStore(redis, keys)
        self._registry = Registry(redis, keys)
        self._recovery = Recovery(redis, keys)

    async def run(self) -> None:
        """Look for ever, in a jittered rhythm."""
        while True:
            await asyncio.sleep(PASS_S * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
            try:
                await self.care()
            except UNAVAILABLE as error:
                _log.warning("care_failed", error=str(error))

    async def care(self) -> None:
        """Do one pass."""
        await self._recovery.look()
        now_ms = await self._registry.now_ms()
        leases = await self._registry.models()
        if self._default_model:
            leases.setdefault(self._default_model, 0)
        for model, leased_until_ms in leases.items():
            if leased_until_ms < now_ms:
                await end_overdue(self._store, Lanes(self._redis, self._keys, model), now_ms)
