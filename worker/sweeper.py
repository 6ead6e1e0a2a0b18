"""The sweep: what a dead worker held waits again, and overdue jobs get their end.

One worker per model sweeps at a time, in bounded passes. A job's record and its lane entry live
under two hash tags, so a sweeper that dies between them leaves a job ``running`` under a dead
owner: ``start`` takes it over all the same.
"""

import asyncio
import random
import time

import structlog

from common.connections import UNAVAILABLE
from common.endings import end_overdue
from common.events import Retrying
from worker.backend import Backend

_log = structlog.get_logger()

PASS_S = 1.0


class Sweeper:
    """Runs in every worker; does something in one of them."""

    def __init__(self, backend: Backend, lease_s: float) -> None:
        self._backend = backend
        self._lease_s = lease_s
        self._was_away_until = float("-inf")  # monotonic: when Redis last did not answer

    def was_away(self) -> None:
        """Note that Redis does not answer now: leases may look over when it is back."""
        self._was_away_until = time.monotonic()

    async def run(self, worker_id: str) -> None:
        """Sweep for ever, in a jittered rhythm."""
        while True:
            await asyncio.sleep(PASS_S * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
            try:
                if await self._backend.registry.take_sweep(self._backend.model, worker_id, PASS_S):
                    await self.sweep()
            except UNAVAILABLE as error:
                self.was_away()
                _log.warning("sweep_failed", error=str(error))

    async def sweep(self) -> None:
        """Do one pass."""
        for dead in await self._dead():
            for job_id in await self._backend.lanes.sweep(dead):
                _log.info("job_orphaned", job=job_id, worker=dead)
                await self._backend.store.requeue(job_id, dead, Retrying("worker_lost"), lost=True)
        now_ms = await self._backend.registry.now_ms()
        await end_overdue(self._backend.store, self._backend.lanes, now_ms)

    async def _dead(self) -> list[str]:
        """Return dead workers, none within a lease after a restart or a failover of the server.

        Then everybody's lease may look over before its owner could reconnect.
        """
        if time.monotonic() - self._was_away_until < self._lease_s:
            return []
        dead = await self._backend.registry.dead(self._backend.model)
        if dead and await self._backend.registry.uptime_s() < self._lease_s:
            return []
        return dead
