"""A worker without an engine: the test writes every event, through the real scripts."""

from typing import Any

import msgspec

from common.events import Completed, Ended, Started, Tokens, encode_event
from common.job_store import Append, JobStore, Outcome
from common.jobs import FinishReason
from common.registry import Heartbeat, WorkerInfo
from tests.support.jobs import RETENTION_MS, make_worker, read

DONE = Completed(FinishReason.STOP, is_eos=True, worker="w1", attempts=1)


class Player:
    """Plays a worker that has joined its model."""

    def __init__(self, store: JobStore, heartbeat: Heartbeat, worker_id: str = "w1") -> None:
        self.info: WorkerInfo = make_worker(worker_id)
        self._store = store
        self._heartbeat = heartbeat
        heartbeat.join(self.info)

    def beat(self, **news: Any) -> None:
        """Send a heartbeat that says this too."""
        self.info = msgspec.structs.replace(self.info, **news)
        self._heartbeat.renew(self.info)

    def die(self) -> None:
        """Let the lease go without a word."""
        self._heartbeat.leave(self.info.id, self.info.model)

    async def take(self, job_id: str) -> "Attempt":
        """Start the job; its log has ``accepted`` and ``started`` afterwards."""
        record = await read(self._store, job_id)
        started = Started(self.info.id, record.attempts + 1)
        outcome, epoch, _ = await self._store.start(record, self.info.id, started)
        assert outcome is Outcome.OK
        return Attempt(self._store, job_id, epoch, record.next + 1)


class Attempt:
    """One attempt at a job. Token IDs count up, so that every event differs from every other."""

    def __init__(self, store: JobStore, job_id: str, epoch: int, n: int) -> None:
        self.job_id = job_id
        self.n = n  # number of the next event
        self._store = store
        self._epoch = epoch
        self._index = 0

    async def say(self, *texts: str, choice: int = 0) -> Outcome:
        """Append one ``tokens`` event of this answer per text."""
        payloads = []
        for text in texts:
            payloads.append(encode_event(Tokens(self._index, (self._index,), text, choice)))
            self._index += 1
        call = Append(self.job_id, self._epoch, self.n, tuple(payloads))
        [(outcome, self.n)] = await self._store.append([call])
        return outcome

    def rewind(self, index: int) -> None:
        """Go on with the token of this index, as a worker does that sends something again."""
        self._index = index

    async def end(self, end: Ended = DONE) -> None:
        """Write the terminal event."""
        position = (self._epoch, self.n)
        outcome, self.n = await self._store.finish(self.job_id, position, end, RETENTION_MS)
        assert outcome is Outcome.OK
