"""One row: a fresh fleet, its load, the fault, and the verdict on every accepted job."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.fleet.clients import Follower, Refused, SseFollower, Submitter
from bench.fleet.gaps import longest_silence, recovery
from bench.fleet.oracle import Verdict, judge
from bench.fleet.stack import Fleet, Plan, running_fleet
from bench.kills.faults import Fault, Scene
from bench.kills.loads import Load
from bench.percentiles import percentile
from common.events import Tokens, decode_event

RAMP_S = 4.0
AFTERWARDS_S = 5.0
END_S = 120.0

_POLL_S = 0.05


class Row(msgspec.Struct, frozen=True):
    """What one fault did. Times are seconds; ``affected`` jobs are those that it hit."""

    fault: str
    in_flight: int
    accepted: int
    ended: int
    lost: int
    repeated: int
    repeated_submits: int
    affected: int
    gaps: tuple[float, ...]
    recoveries: tuple[float, ...]
    aim_s: float
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Tell whether every job ended, with every token once."""
        return not self.problems and self.ended == self.accepted


class Crowd:
    """The clients of one row."""

    def __init__(self, fleet: Fleet, load: Load, group: asyncio.TaskGroup) -> None:
        self.followers: list[Follower] = []
        self.prompts: dict[str, str] = {}  # by job
        self.refusals: list[str] = []
        self.submitter = Submitter(fleet.urls)
        self._urls = fleet.urls
        self._load = load
        self._group = group
        self._number = 0
        self._following: list[asyncio.Task[None]] = []

    async def submit(self) -> None:
        """Submit one job, on the gateways in turn, and let it be followed on another one."""
        number, self._number = self._number, self._number + 1
        payload = self._load.payload(number)
        job_id = await self.submitter.submit(number, payload)
        turn = (number + 1 + number // 2) % len(self._urls)
        follower = SseFollower(job_id, [*self._urls[turn:], *self._urls[:turn]])
        self.followers.append(follower)
        self.prompts[job_id] = payload["prompt"]
        self._following.append(self._group.create_task(self._follow(follower)))

    async def submit_many(self, count: int, over_s: float) -> None:
        """Submit so many jobs, evenly over a time."""
        async with asyncio.TaskGroup() as submits:
            for _ in range(count):
                submits.create_task(self.submit())
                await asyncio.sleep(over_s / count)

    async def submit_on(self, jobs_per_s: float, stop: asyncio.Event) -> None:
        """Go on submitting until told to stop."""
        async with asyncio.TaskGroup() as submits:
            while jobs_per_s and not stop.is_set():
                submits.create_task(self.submit())
                await asyncio.sleep(1 / jobs_per_s)

    async def until_all_run(self) -> None:
        """Wait until every job has a token."""
        async with asyncio.timeout(END_S):
            while not all(each.worker or each.is_done for each in self.followers):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def until_all_end(self) -> None:
        """Wait until every follower is done, or for as long as one may wait."""
        _, late = await asyncio.wait(self._following, timeout=END_S)
        for task in late:
            task.cancel()

    async def _follow(self, follower: Follower) -> None:
        try:
            await follower.follow()
        except Refused as refused:
            self.refusals.append(f"{follower.job_id}: a follower was refused, {refused}")


async def undisturbed_texts(load: Load, settings: dict[str, object], logs: Path) -> dict[str, str]:
    """Return the text of each prompt's answer when nothing happens."""
    plan = Plan({**load.plan().settings, **settings}, num_gateways=1, num_workers=1)
    async with running_fleet(plan, logs) as fleet, asyncio.TaskGroup() as group:
        crowd = Crowd(fleet, load, group)
        await crowd.submit_many(len(load.prompts), 0.1)
        await crowd.until_all_end()
        await crowd.submitter.close()
    return {
        crowd.prompts[each.job_id]: "".join(
            seen.event.text for seen in each.seen if isinstance(seen.event, Tokens)
        )
        for each in crowd.followers
    }


async def run_row(fault: Fault, load: Load, texts: dict[str, str], logs: Path) -> Row:
    """Run one row."""
    async with running_fleet(load.plan(fault), logs) as fleet, asyncio.TaskGroup() as group:
        crowd = Crowd(fleet, load, group)
        scene = Scene(fleet, crowd.followers)
        await crowd.submit_many(load.num_jobs, RAMP_S)
        await crowd.until_all_run()
        await _disturb(fault, scene, crowd, load.jobs_per_s)
        await crowd.until_all_end()
        await crowd.submitter.close()
        verdicts = [
            judge(each.job_id, await _log(fleet, each.job_id), each.seen, texts[prompt])
            for each in crowd.followers
            for prompt in [crowd.prompts[each.job_id]]
        ]
    return _row(fault, scene, crowd, verdicts)


async def _disturb(fault: Fault, scene: Scene, crowd: Crowd, jobs_per_s: float) -> None:
    """Do it while jobs go on coming."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.submit_on(jobs_per_s, stop))
        await fault.hurt(scene)
        await asyncio.sleep(AFTERWARDS_S)
        stop.set()


async def _log(fleet: Fleet, job_id: str) -> list[tuple[int, Any]]:
    return [(n, decode_event(payload)) for n, payload in await fleet.store.log(job_id)]


def _row(fault: Fault, scene: Scene, crowd: Crowd, verdicts: Sequence[Verdict]) -> Row:
    return Row(
        fault=fault.name,
        in_flight=scene.in_flight,
        accepted=len(verdicts),
        ended=sum(each.ended for each in verdicts),
        lost=sum(each.lost for each in verdicts),
        repeated=sum(each.repeated for each in verdicts),
        repeated_submits=crowd.submitter.num_repeated,
        affected=len(scene.affected),
        gaps=tuple(longest_silence(each.seen) for each in crowd.followers),
        recoveries=_recoveries(fault, scene),
        aim_s=fault.aim_s,
        problems=(
            *crowd.refusals,
            *(f"{each.job_id}: {text}" for each in verdicts for text in each.problems),
        ),
    )


def _recoveries(fault: Fault, scene: Scene) -> tuple[float, ...]:
    if fault.resumes is None:
        return ()
    found = (recovery(each.seen, scene.fault_at, fault.resumes) for each in scene.affected)
    return tuple(each for each in found if each is not None)


def pair(values: Sequence[float]) -> str:
    """Return p50 and p99 of durations."""
    if not values:
        return "-"
    return f"{percentile(values, 50):.2f} / {percentile(values, 99):.2f}"
