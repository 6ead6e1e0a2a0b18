"""Redis goes and comes back under load: processes return by themselves, accepted jobs all end.

A SIGKILL of the server loses nothing that it wrote to its append-only file. With `appendfsync
everysec` it may answer before it writes, while the disk is busy with the last sync; so the test
that kills it runs with `always`, where an answer means "written".
"""

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.events import Tokens
from headrace.errors import ApiError
from headrace.views import JobRequest
from tests.support.fleet import Fleet, fleet_on
from tests.support.oracle import Seen
from tests.support.programs import Programs
from tests.support.servers import STARTABLE, Backend, Server
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

SERVICE_UNAVAILABLE = 503
NUM_AT_ONCE = 50
NUM_AFTERWARDS = 20
PROMPTS = [f"A mill by the water, seen on day {day}" for day in range(5)]


class Load:
    """Submits jobs and follows every accepted one, on both gateways in turn."""

    def __init__(self, fleet: Fleet, followers: asyncio.TaskGroup) -> None:
        self.accepted: dict[str, str] = {}  # job → prompt, noted when 202 was read
        self.seen: dict[str, asyncio.Task[Seen]] = {}
        self.num_refused = 0
        self._fleet = fleet
        self._followers = followers
        self._numbers = itertools.count()

    async def submit(self) -> None:
        """Submit one job, again and again under one key until it is accepted."""
        number = next(self._numbers)
        prompt = PROMPTS[number % len(PROMPTS)]
        request = JobRequest(prompt=prompt, max_tokens=60, temperature=0)
        client = self._fleet.gateways[number % 2].client

        async def accepted() -> str:
            try:
                return (await client.submit(request, idempotency_key=f"load-{number}")).id
            except ApiError as refusal:
                if refusal.status != SERVICE_UNAVAILABLE:
                    raise
                self.num_refused += 1
                return ""

        job_id = await eventually(accepted)
        self.accepted[job_id] = prompt
        follow = self._fleet.follow(job_id, gateway=(number + 1) % 2)
        self.seen[job_id] = self._followers.create_task(follow)

    async def submit_many(self, count: int) -> None:
        """Submit jobs one after the other."""
        for _ in range(count):
            await self.submit()

    async def was_refused(self) -> bool:
        """Tell whether a gateway has said that Redis is away."""
        return self.num_refused > 0


@pytest.fixture(params=STARTABLE, ids=str)
def written_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server whose answers mean that the append-only file has it."""
    backend: Backend = request.param
    assert backend.binary
    server = Server(backend.binary, tmp_path, "--appendfsync", "always")
    server.start()
    yield server
    server.kill()


async def endure(fleet: Fleet, server: Server, end: Callable[[], None]) -> None:
    """Put the fleet under load, end the server, start it again; check every accepted job."""
    await fleet.start(gateways=2, workers=2, capacity=8, fake_tokens_per_s=60)
    async with within(60), asyncio.TaskGroup() as group:
        load = Load(fleet, group)
        await load.submit_many(NUM_AT_ONCE)
        submitting = group.create_task(load.submit_many(NUM_AFTERWARDS))
        await asyncio.to_thread(end)
        await eventually(load.was_refused)
        await asyncio.to_thread(server.start)
        await submitting

    assert len(load.accepted) == NUM_AT_ONCE + NUM_AFTERWARDS
    texts = defaultdict(set)
    for job_id, prompt in load.accepted.items():
        story = await fleet.story(job_id)
        story.check(load.seen[job_id].result())
        assert story.end.kind == "completed"
        texts[prompt].add(story.text)
    assert all(len(answers) == 1 for answers in texts.values()), "a prompt has two answers"
    for gateway in fleet.gateways:
        await gateway.program.says('"doorbell_lost"')
        await eventually(gateway.client.is_ready)
    for worker in fleet.workers:
        await worker.says('"bell_lost"')
    await fleet.check_at_rest()


@pytest.mark.fault(11)
async def test_nothing_accepted_is_lost_when_redis_is_killed(
    written_server: Server, programs: Programs
) -> None:
    """After SIGKILL of Redis under load every accepted job ends once, and every reader sees it."""
    async with fleet_on(written_server, programs) as fleet:
        await endure(fleet, written_server, written_server.kill)


@pytest.mark.fault(11)
async def test_nothing_accepted_is_lost_when_redis_shuts_down(
    own_server: Server, programs: Programs
) -> None:
    """After a shutdown in order of Redis under load every accepted job ends once."""
    async with fleet_on(own_server, programs) as fleet:
        await endure(fleet, own_server, own_server.stop)


def append_only_file(data_dir: Path) -> tuple[Path, int]:
    """Return the file that the server writes to now, and its size."""
    [file] = data_dir.glob("appendonlydir/*.incr.aof")
    return file, file.stat().st_size


@pytest.mark.fault(11)
async def test_a_server_without_its_last_second_is_given_the_events_again(
    own_server: Server, programs: Programs, tmp_path: Path
) -> None:
    """Events and an end that a power cut took from Redis are written again by their worker."""
    async with fleet_on(own_server, programs) as fleet:
        await fleet.start(gateways=2, workers=2)
        long = await fleet.submit(PROMPTS[0], max_tokens=480)
        short = await fleet.submit(PROMPTS[1], max_tokens=60)
        async with within(40), asyncio.TaskGroup() as group:
            follower = group.create_task(fleet.follow(long, gateway=1))
            await fleet.logged(long, 10)
            await fleet.logged(short, 10)
            log, safe_size = append_only_file(tmp_path)
            seen = await fleet.follow(short)
            # Now nothing of the short job is on its way: its worker has no reason to look again.
            [(_, length)] = filter(None, await fleet.store.top([long]))
            await fleet.logged(long, length + 20)
            await asyncio.to_thread(own_server.kill)
            os.truncate(log, safe_size)
            await asyncio.to_thread(own_server.start)
            lost = await fleet.store.record(short)
            assert lost
            assert not lost.is_ended, "the fault has not bitten"
            again = await fleet.follow(short, gateway=1)

        story = await fleet.story(long)
        assert story.outline == "accepted started tokens completed"
        story.check(follower.result())
        story = await fleet.story(short)
        story.check(again)
        assert story.text == "".join(event.text for _, event in seen if isinstance(event, Tokens))
        await fleet.check_at_rest()
