"""The source of events: appends through the job store at a rate, as several workers would.

A program of its own, so that its cost is seen apart: ``python -m bench.relay.appender`` with an
:class:`Order` on the standard input. It prints a line when the first event is due, and a
:class:`Done` at the end. The only token of an event is the time just before its ``append`` (ns), so
that every receiver can tell its age.
"""

import asyncio
import sys
import time

import msgspec
import uvloop

from common.connections import command_client
from common.events import Started, Tokens, encode_event
from common.job_store import Append, JobStore, Outcome
from common.keys import Keys

FLUSH_S = 0.02  # as often as a worker with short steps at most, and somewhat more

_WORDS = (" the", " river", " turns", " slowly", " under", " a", " wooden", " wheel", ",", " and")


class Order(msgspec.Struct, frozen=True):
    """What to append: the jobs are queued ones, and are started first."""

    redis: str
    job_ids: tuple[str, ...]
    appends_per_s: float
    seconds: float
    num_workers: int


class Done(msgspec.Struct, frozen=True):
    """What was done; ``late_ms`` says how far behind its rhythm the slowest flush was."""

    num_appended: int
    late_ms: float


class Writer:
    """One worker's share of the jobs."""

    def __init__(self, store: JobStore, job_ids: tuple[str, ...], rate: float) -> None:
        self.num_appended = 0
        self.late_s = 0.0
        self._store = store
        self._job_ids = job_ids
        self._rate = rate
        self._epochs: list[int] = []
        self._lengths: list[int] = []  # of the logs

    async def start(self) -> None:
        """Take the jobs."""
        for job_id in self._job_ids:
            record = await self._store.record(job_id)
            assert record is not None
            outcome, epoch, _ = await self._store.start(record, "bench", Started("bench", 1))
            assert outcome is Outcome.OK
            self._epochs.append(epoch)
            self._lengths.append(record.next + 1)

    async def run(self, begin: float, end: float) -> None:
        """Flush in the worker's rhythm; a late flush appends what is due by then."""
        due = begin
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            self.late_s = max(self.late_s, time.monotonic() - due)
            wanted = int((due - begin) * self._rate) - self.num_appended
            await self._flush(wanted)
            due += FLUSH_S

    async def _flush(self, count: int) -> None:
        if count <= 0:
            return
        stamp = time.monotonic_ns()
        appends = []
        for number in range(self.num_appended, self.num_appended + count):
            job = number % len(self._job_ids)
            n = self._lengths[job]
            event = Tokens(n - 2, (stamp,), _WORDS[n % len(_WORDS)])
            self._lengths[job] += 1
            appends.append(Append(self._job_ids[job], self._epochs[job], n, (encode_event(event),)))
        answers = await self._store.append(appends)
        assert all(outcome is Outcome.OK for outcome, _ in answers)
        self.num_appended += count


async def append_all(order: Order) -> Done:
    """Do what the order says."""
    redis = command_client(order.redis)
    store = JobStore(redis, Keys())
    shares = [order.job_ids[first :: order.num_workers] for first in range(order.num_workers)]
    rate = order.appends_per_s / len(order.job_ids)
    writers = [Writer(store, share, rate * len(share)) for share in shares if share]
    await asyncio.gather(*(writer.start() for writer in writers))
    print("started", flush=True)
    begin = time.monotonic()
    phases = [begin + FLUSH_S * number / len(writers) for number in range(len(writers))]
    end = begin + order.seconds
    await asyncio.gather(
        *(writer.run(phase, end) for writer, phase in zip(writers, phases, strict=True))
    )
    await redis.aclose()
    late_s = max(writer.late_s for writer in writers)
    return Done(sum(writer.num_appended for writer in writers), late_s * 1000)


def main() -> None:
    """Read the order, append, say what was done."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    done = uvloop.run(append_all(order))
    print(msgspec.json.encode(done).decode())


if __name__ == "__main__":
    main()
