"""A job that the test writes itself, for the readers of a gateway process."""

from common.events import Ended, Tokens, encode_event
from common.job_store import Append, JobStore, Outcome
from tests.support.fleet import Fleet
from tests.support.jobs import RETENTION_MS, STOPPED, make_job, start, submit


class Monologue:
    """Its worker is the test, and every event one call."""

    def __init__(self, store: JobStore, job_id: str, epoch: int) -> None:
        self.job_id = job_id
        self._store = store
        self._epoch = epoch
        self._next = 2

    @classmethod
    async def begin(cls, fleet: Fleet) -> "Monologue":
        """Start a job of the tenant of everybody, and of a model that no worker serves.

        A gateway that finds it without a place in a lane gives it one.
        """
        job = make_job(tenant="default", model="monologue")
        await submit(fleet.store, job)
        return cls(fleet.store, job.id, await start(fleet.store, job.id))

    async def say(self, text: str) -> None:
        """Append one event."""
        event = encode_event(Tokens(self._next - 2, (1,), text))
        append = Append(self.job_id, self._epoch, self._next, (event,))
        [(outcome, self._next)] = await self._store.append([append])
        assert outcome is Outcome.OK

    async def end(self, end: Ended = STOPPED) -> None:
        """Write the end."""
        position = (self._epoch, self._next)
        await self._store.finish(self.job_id, position, end, RETENTION_MS)
