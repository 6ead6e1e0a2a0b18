"""The relay: one transcript per watched job, fed by the log and the doorbell.

Attaching is: await the SUBSCRIBE confirmation, read the log, then merge by ``n``. Whatever does not
fit (a live message ahead of the transcript, a reconnect, a long silence) is answered by reading the
log again, never by a timeout or a guess.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from common.connections import UNAVAILABLE
from common.deadlines import is_overdue
from common.endings import end_if_overdue
from common.errors import STREAM_DIVERGED, Problem
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry
from gateway.doorbell import Doorbell
from gateway.transcript import Offer
from gateway.watch import Cursor, Subject, Watch

_log = structlog.get_logger()

RETRY_S = 0.25
HEAL_S = 10.0  # after a reconnect, workers may still be sending again what Redis lost
COMPARE_PAGE = 50  # jobs per round trip: while the answers are parsed, no stream moves


def job_not_found(job_id: str) -> Problem:
    """Return the answer for a job that never was, is forgotten, or belongs to somebody else."""
    detail = f"There is no job {job_id}: it never existed, or its retention is over."
    return Problem(404, "job-not-found", detail)


def stream_diverged() -> Problem:
    """Return the answer for readers of events that Redis lost and that others have replaced."""
    detail = (
        "Redis lost the last events of this job, and the answer went on differently; "
        "forget what you have and follow the job from its start."
    )
    return Problem(409, STREAM_DIVERGED, detail)


class Relay:
    """The watched jobs of one gateway."""

    def __init__(
        self, store: JobStore, registry: Registry, doorbell: Doorbell, keys: Keys, resync_s: float
    ) -> None:
        self._store = store
        self._registry = registry
        self._doorbell = doorbell
        self._keys = keys
        self._resync_s = resync_s
        self._watches: dict[str, Watch] = {}
        self._attaching: dict[str, asyncio.Task[Watch]] = {}
        self._reading: dict[Watch, asyncio.Task[None]] = {}  # catch-ups, one per watch at most
        self._resynced_at = time.monotonic()
        self._is_connected = False
        self._reconnected_at = -math.inf

    @property
    def is_alive(self) -> bool:
        """Tell whether live messages arrive and the relay's own loop turns."""
        turning = time.monotonic() - self._resynced_at < 3 * self._resync_s + 5
        return turning and self._doorbell.is_alive

    @property
    def num_watches(self) -> int:
        """How many jobs are watched, or are about to be."""
        return len(self._watches.keys() | self._attaching.keys())

    @property
    def num_cursors(self) -> int:
        """How many subscribers there are."""
        return sum(len(watch.cursors) for watch in self._watches.values())

    async def run(self) -> None:
        """Listen and compare for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._doorbell.run(self._on_message, self._on_reconnect))
            group.create_task(self._resync())

    async def open(
        self, tenant: str, job_id: str, position: int, on_wake: Callable[[], None]
    ) -> Cursor:
        """Return a cursor before event ``position``; raises ``Problem`` where there cannot be one.

        The caller must ``close`` it.
        """
        watch = self._live(job_id)
        is_known = watch is not None and watch.tenant == tenant
        if not is_known and await self._store.owner(job_id) != tenant:
            raise job_not_found(job_id)
        watch = await self._watch(job_id, partial(self._attach, job_id))
        cursor = Cursor(watch, position, on_wake)
        watch.cursors.add(cursor)
        try:
            await self._reach(watch, position)
        except BaseException:
            await self.close(cursor)
            raise
        return cursor

    async def open_new(self, subject: Subject, on_wake: Callable[[], None]) -> Cursor:
        """Return a cursor before the first event of a job that this gateway has just made.

        Its record need not be asked for. The caller must ``close`` the cursor.
        """
        old = self._live(subject.job_id)
        if old is not None and old.transcript.incarnation != subject.incarnation:
            old.fail(job_not_found(old.job_id))  # Redis lost it, and its key has made it anew
        feed = partial(self._feed, Watch(subject), is_ended=False)
        watch = await self._watch(subject.job_id, feed)
        cursor = Cursor(watch, 0, on_wake)
        watch.cursors.add(cursor)
        return cursor

    async def _reach(self, watch: Watch, position: int) -> None:
        """Return when the log is known up to the position; raises ``Problem`` if it ends before."""
        if position > len(watch.transcript) and not watch.transcript.ended:
            await self._catch_up(watch)  # another gateway may have been faster
        while position > len(watch.transcript) and self._may_be_healed(watch):
            await asyncio.sleep(RETRY_S)
            await self._catch_up(watch)
        if position > len(watch.transcript):
            detail = (
                f"The job's log ends before event {position - 1}; "
                f"follow it with after={len(watch.transcript) - 1} or without."
            )
            raise Problem(409, "cursor-ahead", detail)

    def _may_be_healed(self, watch: Watch) -> bool:
        """Tell whether the log may be short because Redis lost its end, and its worker sends it."""
        is_young = time.monotonic() - self._reconnected_at < HEAL_S
        return is_young and not watch.transcript.ended and watch.failure is None

    async def close(self, cursor: Cursor) -> None:
        """Take a cursor away; the last one takes the watch with it."""
        cursor.watch.cursors.discard(cursor)
        if not cursor.watch.cursors:
            await self._release(cursor.watch)

    async def _release(self, watch: Watch) -> None:
        if self._watches.get(watch.job_id) is watch:
            del self._watches[watch.job_id]
            await self._doorbell.unsubscribe(self._keys.job(watch.job_id).live)

    async def _watch(self, job_id: str, make: Callable[[], Coroutine[Any, Any, Watch]]) -> Watch:
        """Return the job's watch. Where there is none it is made, once for all who want it."""
        task = self._attaching.get(job_id)
        watch = self._live(job_id)
        if task is None and watch is None:
            task = asyncio.create_task(make())
            self._attaching[job_id] = task
            task.add_done_callback(partial(self._on_attached, job_id))
        if task is not None:
            # A client that leaves must not take the others' attach with it.
            watch = await asyncio.shield(task)
        assert watch is not None
        return watch

    def _live(self, job_id: str) -> Watch | None:
        """Return the job's watch, unless it has failed: who comes now may follow it anew."""
        watch = self._watches.get(job_id)
        return watch if watch is not None and watch.failure is None else None

    def _on_attached(self, job_id: str, task: asyncio.Task[Watch]) -> None:
        self._attaching.pop(job_id, None)
        if not task.cancelled():
            task.exception()  # who waits hears it; if all have left, asyncio need not complain

    async def _attach(self, job_id: str) -> Watch:
        record = await self._store.record(job_id)
        if record is None:
            raise job_not_found(job_id)
        subject = Subject(job_id, record.tenant, record.deadline_ms, record.incarnation)
        return await self._feed(Watch(subject), is_ended=record.is_ended)

    async def _feed(self, watch: Watch, *, is_ended: bool) -> Watch:
        """Subscribe, then read the log: from now on the watch has every event."""
        self._watches[watch.job_id] = watch
        try:
            if not is_ended:
                await self._doorbell.subscribe(self._keys.job(watch.job_id).live)
            await self._read_log(watch)
        except BaseException:
            await self._release(watch)
            raise
        return watch

    def _on_message(self, channel: str, data: bytes) -> None:
        watch = self._watches.get(self._keys.job_of_live(channel))
        if watch is None or watch.failure is not None:
            return
        try:
            incarnation, number, payload = data.split(b":", 2)
            offer = watch.transcript.offer(incarnation.decode(), int(number), payload)
        except ValueError:
            offer = Offer.AHEAD  # a hint that cannot be read: the log knows better
        if offer is Offer.TAKEN:
            watch.notify()
        elif offer is Offer.DIVERGED:
            watch.fail(stream_diverged())
        elif offer is Offer.AHEAD:
            self._start_catch_up(watch)

    def _on_reconnect(self) -> None:
        """Messages may have been missed: look at the log of every job that still runs."""
        if self._is_connected:
            self._reconnected_at = time.monotonic()
        self._is_connected = True
        for watch in self._watches.values():
            if not watch.transcript.ended:
                self._start_catch_up(watch)

    def _start_catch_up(self, watch: Watch) -> asyncio.Task[None]:
        watch.is_behind = True
        task = self._reading.get(watch)
        if task is None:
            task = asyncio.create_task(self._outlast(watch))
            self._reading[watch] = task
            task.add_done_callback(lambda _: self._reading.pop(watch, None))
        return task

    async def _catch_up(self, watch: Watch) -> None:
        await asyncio.shield(self._start_catch_up(watch))

    async def _outlast(self, watch: Watch) -> None:
        """Read the log as soon as Redis answers, unless everybody has left.

        And again where something was ahead meanwhile: the log may have been read before it came.
        """
        while watch.is_behind and self._is_followed(watch):
            watch.is_behind = False
            try:
                await self._read_log(watch)
            except UNAVAILABLE:
                watch.is_behind = True
                await asyncio.sleep(RETRY_S)
            except Problem as problem:
                watch.fail(problem)
                return
            except Exception as error:  # noqa: BLE001 - every follower is told
                _log.exception("log_unreadable", job=watch.job_id)
                watch.fail(Problem(502, "stream-unreadable", f"The job's log is damaged: {error}"))
                return

    def _is_followed(self, watch: Watch) -> bool:
        return self._watches.get(watch.job_id) is watch and watch.failure is None

    async def _read_log(self, watch: Watch) -> None:
        transcript = watch.transcript
        before = len(transcript)
        # The last known event is read again: it must still be the one that others follow.
        for n, payload in await self._store.log(watch.job_id, max(0, before - 1)):
            offer = transcript.offer(transcript.incarnation, n, payload)
            if offer is Offer.DIVERGED:
                raise stream_diverged()
            if offer is Offer.AHEAD:
                raise Problem(502, "stream-unreadable", f"The job's log has no event before {n}.")
        if len(transcript) > before:
            watch.notify()

    async def _resync(self) -> None:
        """Compare silent jobs with their logs: nothing else betrays a lost last message."""
        while True:
            await asyncio.sleep(self._resync_s)
            silent = time.monotonic() - self._resync_s
            watches = [
                watch
                for watch in self._watches.values()
                if not watch.transcript.ended and watch.heard_at < silent
            ]
            try:
                await self._forget_unused(silent)
                for first in range(0, len(watches), COMPARE_PAGE):
                    await self._compare(watches[first : first + COMPARE_PAGE])
            except UNAVAILABLE as error:
                _log.warning("resync_failed", error=str(error))
            self._resynced_at = time.monotonic()

    async def _forget_unused(self, silent: float) -> None:
        """Drop watches whose only client left while they were attached."""
        for watch in list(self._watches.values()):
            unused = not watch.cursors and watch.heard_at < silent
            if unused and watch.job_id not in self._attaching:
                await self._release(watch)

    async def _compare(self, watches: list[Watch]) -> None:
        now_ms = await self._registry.now_ms()
        tops = await self._store.top(watch.job_id for watch in watches)
        for watch, top in zip(watches, tops, strict=True):
            if top is None or top[0] != watch.transcript.incarnation:
                watch.fail(job_not_found(watch.job_id))
            elif top[1] > len(watch.transcript):
                self._start_catch_up(watch)
            elif is_overdue(watch.deadline_ms, now_ms):
                await end_if_overdue(self._store, watch.job_id, now_ms)  # there may be no worker
