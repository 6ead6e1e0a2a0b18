"""One worker of real parts around a fake engine, without a process; and what its jobs must be."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from common.connections import command_client, lease_client, pubsub_client
from common.events import Accepted, Ended, Event, Tokens, decode_event, is_terminal
from common.job_store import Append
from common.jobs import JobSpec
from common.keys import Keys
from common.lanes import Affinity
from common.registry import Heartbeat
from tests.support.jobs import MODEL, TENANT, make_job, make_worker
from tests.support.waiting import eventually, within
from tests.worker.engine.recorder import Recorder
from worker.backend import Backend
from worker.bell import Bell
from worker.engine.fake import FakeEngine
from worker.engine.protocol import Delta, Finished, Output, Refused, Request, Sink
from worker.lease import Lease
from worker.runner import Runner
from worker.sweeper import Sweeper

LEASE_S = 2.0
FLUSH_S = 0.005
POLL_S = 0.05
PATIENCE_S = 3600.0


class CutEngine(FakeEngine):
    """A fake engine that falls silent after ``cut`` tokens of each request; 0 cuts at once."""

    def __init__(self, cut: int, *, capacity: int = 64) -> None:
        super().__init__(MODEL, tokens_per_s=0, capacity=capacity)
        self.cut = cut
        self.is_cut = asyncio.Event()

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request, and let through only what comes before the cut."""
        left = self.cut

        def take(output: Output) -> None:
            nonlocal left
            is_news = isinstance(output, Finished | Refused) or (
                isinstance(output, Delta) and bool(output.ids)
            )
            if is_news and not left:
                self.is_cut.set()
                return
            if is_news:
                left -= 1
            sink(output)

        super().submit(request, take)


class Rig:
    """A worker: ``start`` it, and ``kill`` it at any time as a SIGKILL would."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        *,
        engine: FakeEngine | None = None,
        lease_s: float = LEASE_S,
        flush_s: float = FLUSH_S,
        max_losses: int = 3,
    ) -> None:
        self.redis = command_client(url)
        self.backend = Backend.on(self.redis, keys, MODEL)
        self.engine = engine or FakeEngine(MODEL, tokens_per_s=0, capacity=64)
        self._beats = lease_client(url, lease_s / 2)
        self._subscriber = pubsub_client(url)
        self.heartbeat = Heartbeat(self._beats, keys, lease_s)
        self.lease = Lease(self.heartbeat, lambda: make_worker(self.runner.worker_id), lease_s)
        self.bell = Bell(self._subscriber, keys, MODEL)
        self.runner = Runner(self.backend, self.engine, self.lease, flush_s, max_losses)
        self.publisher = self.runner.publisher
        self.bell.on_connect = self.runner.doubt_entries
        self.sweeper = Sweeper(self.backend, lease_s)
        self.tasks: list[asyncio.Task[None]] = []
        self._has_lease = False
        self._is_dead = False

    @property
    def worker_id(self) -> str:
        """The current worker ID."""
        return self.runner.worker_id

    async def join(self) -> None:
        """Load the engine and take the lease, but run nothing yet."""
        await self.engine.load(lambda _what, _done: None)
        await self.bell.rename(self.worker_id)
        self.lease.start()
        self._has_lease = True
        async with within():
            await self.lease.joined.wait()

    def serve(self, capacity: int = 4) -> None:
        """Run everything but the sweep, which tests call by hand."""
        self.spawn(self.publisher.run())
        self.spawn(self.runner.run(capacity, POLL_S))
        self.spawn(self.runner.rejoin(self.bell))
        self.spawn(self.bell.listen(self.runner.ring, self.publisher.cancel))

    def spawn(self, step: Coroutine[None, None, None]) -> None:
        """Run a part in the background."""
        self.tasks.append(asyncio.create_task(step))

    async def start(self, capacity: int = 4) -> "Rig":
        """Join and serve."""
        await self.join()
        self.serve(capacity)
        return self

    async def drain(self, timeout_s: float, hurry: asyncio.Event | None = None) -> None:
        """Drain as on SIGTERM."""
        async with within():
            await self.runner.drain(timeout_s, hurry or asyncio.Event())

    async def stop_tasks(self) -> None:
        """End the background tasks; the first that had died by itself fails the test."""
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def kill(self) -> None:
        """Die without a word: nothing is handed over, the lease is left to run out."""
        if self._is_dead:
            return
        self._is_dead = True
        try:
            await self.stop_tasks()
        finally:
            if self._has_lease:
                await asyncio.to_thread(self.lease.stop)
            await self.engine.close()
            await self.redis.aclose()
            await self._subscriber.aclose()
            self._beats.close()

    async def expire(self, *worker_ids: str) -> None:
        """Let the leases of other workers be over."""
        workers = self.backend.keys.model(MODEL).workers
        await self.redis.zadd(workers, dict.fromkeys(worker_ids, 1), xx=True)

    async def bury(self, worker_id: str) -> None:
        """Let a worker's lease be over, and sweep until nothing of it is left."""

        async def is_buried() -> bool:
            # Each time: its thread may live and renew it, while a young server is not swept yet.
            await self.expire(worker_id)
            await self.sweeper.sweep()
            workers = self.backend.keys.model(MODEL).workers
            return await self.redis.zscore(workers, worker_id) is None

        await eventually(is_buried)


async def submit(backend: Backend, *, deadline_s: float = 60.0, **spec: Any) -> str:
    """Submit a job as a gateway does, record first, and return its ID."""
    job = make_job(deadline_s=deadline_s)
    job = replace(job, spec=msgspec.structs.replace(job.spec, **spec))
    submitted = await backend.store.submit(job, Accepted(job.id, MODEL))
    prompt_id = job.spec.prompt_id
    affinity = Affinity(prompt_id, PATIENCE_S) if prompt_id else None
    await backend.lanes.enqueue(job.id, TENANT, job.spec.priority, submitted.deadline_ms, affinity)
    return job.id


async def hold_at(rig: Rig, backend: Backend, **spec: Any) -> str:
    """Submit a job and let the rig run it until all up to its engine's cut is logged."""
    job_id = await submit(backend, **spec)
    engine = rig.engine
    assert isinstance(engine, CutEngine)
    async with within():
        await engine.is_cut.wait()
    await until(lambda: is_held(rig, job_id))
    return job_id


def is_held(rig: Rig, job_id: str) -> bool:
    """Tell whether the rig runs the job and Redis has all that its engine said."""
    log = rig.publisher.attempts.get(job_id)
    return log is not None and log.is_sent


async def events_of(backend: Backend, job_id: str) -> list[Event]:
    """Return the events of a job; their numbers must be contiguous."""
    log = await backend.store.log(job_id)
    assert [n for n, _ in log] == list(range(len(log)))
    return [decode_event(payload) for _, payload in log]


async def kinds_of(backend: Backend, job_id: str) -> list[str]:
    """Return the kinds of a job's events, runs of ``tokens`` as one."""
    return [kind for kind, _ in itertools.groupby(e.kind for e in await events_of(backend, job_id))]


def text_of(events: list[Event]) -> str:
    """Return the answer; the token indexes must be contiguous."""
    text, num_ids = "", 0
    for event in events:
        if isinstance(event, Tokens):
            assert event.index == num_ids
            num_ids += len(event.ids)
            text += event.text
    return text


def ids_of(events: list[Event]) -> tuple[int, ...]:
    """Return all token IDs."""
    return tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)


async def end_of(backend: Backend, job_id: str) -> Ended:
    """Wait for the end of a job; it must be the only one and the last event."""

    async def is_ended() -> bool:
        record = await backend.store.record(job_id)
        return record is not None and record.is_ended

    await eventually(is_ended)
    events = await events_of(backend, job_id)
    ends = [event for event in events if is_terminal(event)]
    assert ends == events[-1:]
    assert isinstance(ends[0], Ended)
    return ends[0]


async def at_rest(backend: Backend) -> None:
    """Wait until no lane entry and no unfinished job is left."""

    async def is_at_rest() -> bool:
        return await backend.lanes.depths() == [] and await backend.lanes.unfinished() == 0

    await eventually(is_at_rest)


async def until(predicate: Callable[[], bool]) -> None:
    """Wait until a fact of this process holds."""

    async def holds() -> bool:
        return predicate()

    await eventually(holds)


async def undisturbed(spec: JobSpec, base: tuple[int, ...] = ()) -> Recorder:
    """Return the answer that a job of this spec gets from an engine that nothing disturbs."""
    engine, recorder = FakeEngine(MODEL, tokens_per_s=0, capacity=1), Recorder()
    await engine.load(lambda _what, _done: None)
    engine.submit(Request("j:1", spec, base=base), recorder)
    await recorder.ended()
    await engine.close()
    return recorder


async def answer_to(backend: Backend, job_id: str) -> str:
    """Return the text that the job must have in the end."""
    record = await backend.store.record(job_id)
    assert record
    return (await undisturbed(record.spec)).text


def has_end(appends: Sequence[Append]) -> bool:
    """Tell whether this append ends a job."""
    return any(append.end for append in appends)


def lose_reply(
    target: object, method: str, times: int = 1, when: Callable[..., bool] | None = None
) -> list[Any]:
    """Let a method do its work and then lose its answer; returns the list of what was lost."""
    original: Callable[..., Coroutine[None, None, Any]] = getattr(target, method)
    lost: list[Any] = []

    async def lossy(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        if len(lost) < times and (when is None or when(*args, **kwargs)):
            lost.append(answer)
            raise RedisConnectionError("the reply is lost")
        return answer

    setattr(target, method, lossy)
    return lost


async def set_fields(redis: Redis, backend: Backend, job_id: str, **fields: bytes | int) -> None:
    """Overwrite fields of a job record, as no script would."""
    key = backend.keys.job(job_id).record
    await redis.hset(key, mapping=dict(fields))  # type: ignore[misc]
