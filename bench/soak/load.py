"""The steady load: jobs that are followed in every way, cancelled, or left alone."""

import asyncio
import enum
from collections import Counter
from typing import Any

from bench.fleet.clients import Follower, Refused, Seen, SocketFollower, SseFollower, Submitter
from bench.fleet.oracle import Log, judge
from bench.fleet.stack import Fleet, steady
from common.events import Completed, Tokens, decode_event

NUM_PROMPTS = 50
CANCEL_AFTER = 10  # events
END_S = 60.0
POLL_S = 1.0


class Way(enum.StrEnum):
    """What becomes of a job after its submit."""

    SSE = "followed over SSE"
    SOCKET = "followed over WebSocket"
    CANCELLED = "followed over SSE, cancelled after some tokens"
    ALONE = "never followed"


_WAYS = (Way.SSE, Way.SSE, Way.SOCKET, Way.SSE, Way.ALONE) * 2 + (Way.SSE, Way.CANCELLED)


class Crowd:
    """The clients; they keep counts and what went wrong, and forget each job once it is judged."""

    def __init__(self, fleet: Fleet, max_tokens: int, group: asyncio.TaskGroup) -> None:
        self.accepted: Counter[Way] = Counter()
        self.ended: Counter[Way] = Counter()
        self.num_lost = 0
        self.num_repeated = 0
        self.problems: list[str] = []
        self.submitter = Submitter(fleet.urls)
        self._fleet = fleet
        self._max_tokens = max_tokens
        self._group = group
        self.num_submitted = 0  # or about to be
        self._texts: dict[str, str] = {}  # by prompt: the first whole answer
        self._jobs: set[asyncio.Task[None]] = set()

    @property
    def num_accepted(self) -> int:
        """How many jobs were accepted so far."""
        return self.accepted.total()

    async def run(self, jobs_per_s: float, stop: asyncio.Event) -> None:
        """Submit jobs at this rate until told to stop, and wait until all of them have ended."""
        while not stop.is_set():
            job = self._group.create_task(self._live(self.num_submitted))
            self.num_submitted += 1
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            await asyncio.sleep(1 / jobs_per_s)
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=END_S)
            for task in late:
                task.cancel()

    async def _live(self, number: int) -> None:
        """Submit one job, be with it to its end, judge it."""
        way = _WAYS[number % len(_WAYS)]
        payload = self._payload(number)
        try:
            job_id = await self.submitter.submit(number, payload)
            self.accepted[way] += 1
            seen = await self._be_with(job_id, way, number)
        except Refused as refused:
            self.problems.append(f"job {number}: {refused}")
            return
        log = await self._log(job_id)
        self._judge(job_id, way, log, seen or _as_seen(log), payload["prompt"])

    def _payload(self, number: int) -> dict[str, Any]:
        return {
            "prompt": f"Question {number % NUM_PROMPTS} of a very long night",
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }

    async def _be_with(self, job_id: str, way: Way, number: int) -> list[Seen]:
        """Wait for the end; returns what was seen, nothing of a job that is left alone."""
        urls = self._fleet.urls
        turn = (number + 1) % len(urls)
        urls = [*urls[turn:], *urls[:turn]]
        if way is Way.ALONE:
            await self._until_ended(job_id)
            return []
        follower = (SocketFollower if way is Way.SOCKET else SseFollower)(job_id, urls)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.follow())
            if way is Way.CANCELLED:
                await _until_seen(follower, following)
                await self.submitter.cancel(job_id)
        return follower.seen

    async def _until_ended(self, job_id: str) -> None:
        """Look at the record now and then; gives up, without the end, after a while."""
        for _ in range(round(END_S / POLL_S)):
            await asyncio.sleep(POLL_S)
            record = await steady(lambda: self._fleet.store.record(job_id))
            if record is None or record.is_ended:
                return

    async def _log(self, job_id: str) -> Log:
        entries = await steady(lambda: self._fleet.store.log(job_id))
        return [(n, decode_event(payload)) for n, payload in entries]

    def _judge(self, job_id: str, way: Way, log: Log, seen: list[Seen], prompt: str) -> None:
        text = "".join(event.text for _, event in log if isinstance(event, Tokens))
        if log and isinstance(log[-1][1], Completed):
            self._texts.setdefault(prompt, text)
        expected = None if way is Way.CANCELLED else self._texts.get(prompt, "")
        verdict = judge(job_id, log, seen, expected)
        self.ended[way] += verdict.ended
        self.num_lost += verdict.lost
        self.num_repeated += verdict.repeated
        self.problems += [f"{job_id} ({way}): {problem}" for problem in verdict.problems]


def _as_seen(log: Log) -> list[Seen]:
    return [Seen(0.0, 1, n, event) for n, event in log]


async def _until_seen(follower: Follower, following: asyncio.Task[None]) -> None:
    while len(follower.seen) < CANCEL_AFTER and not following.done():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S / 10)
