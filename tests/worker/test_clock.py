"""Clocks that jump: that of Redis, as the scripts see it, and those of the workers."""

import ast
from pathlib import Path

import pytest

import common
import worker
from common import job_store, lanes, prompts, registry
from common.job_store import Outcome
from common.scripts import Script
from tests.support.cutting import cut, cut_for_now
from tests.support.jobs import MODEL, STOPPED, append, read, start, submit
from tests.support.waiting import eventually
from tests.worker.conftest import MakeRig
from tests.worker.rig import (
    CutEngine,
    answer_to,
    at_rest,
    end_of,
    events_of,
    hold_at,
    text_of,
)
from tests.worker.rig import submit as submit_to_lane
from worker.backend import Backend
from worker.engine.fake import FakeEngine

pytestmark = pytest.mark.anyio

HOUR_S = 3600
LONG_S = 10 * HOUR_S
TIMED = [
    *(job_store._SUBMIT, job_store._START, job_store._APPEND, job_store._FINISH),
    *(lanes._ADMIT, lanes._ENQUEUE, lanes._CLAIM, lanes._ORPHAN, lanes._RELEASE),
    *(prompts._COMMIT, registry._RENEW),
]
"""The scripts that ask for the time."""

# The server's own clock cannot be set. This one is wrong by so many seconds.
CLOCK = """
local function clock()
  local time = redis.call('TIME')
  time[1] = tostring(tonumber(time[1]) + {error_s})
  return time
end
"""


class Clock:
    """The time of Redis, for scripts and for the registry."""

    def __init__(self) -> None:
        self.error_s = 0

    def step(self, seconds: int) -> None:
        """Let the clock jump."""
        old = self.text
        self.error_s += seconds
        for script in TIMED:
            cut(script, old, self.text)

    @property
    def text(self) -> str:
        """What a script has instead of its server's clock."""
        return CLOCK.replace("{error_s}", str(self.error_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that is right until it is stepped."""
    wrong = Clock()
    for script in TIMED:
        cut_for_now(monkeypatch, script, "redis.call('TIME')", "clock()")
        cut_for_now(monkeypatch, script, script.text, wrong.text + script.text)
    read_clock = registry.read_clock
    monkeypatch.setattr(
        registry, "read_clock", lambda reply: read_clock(reply) + 1000 * wrong.error_s
    )
    return wrong


def test_no_other_script_asks_for_the_time() -> None:
    """The clock of these tests is the clock of all scripts."""
    modules = (job_store, lanes, prompts, registry)
    scripts = {s for module in modules for s in vars(module).values() if isinstance(s, Script)}
    asking = {script.name for script in scripts if "now_ms()" in own_text(script)}
    asking |= {script.name for script in scripts if "'TIME'" in own_text(script)}
    assert asking == {script.name for script in TIMED}


def own_text(script: Script) -> str:
    """Return what a script does, without the functions that it shares."""
    return script.text[script.text.find("-- KEYS") :]


@pytest.mark.fault(21)
@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_a_clock_that_jumps_in_mid_answer(
    make_rig: MakeRig, backend: Backend, clock: Clock, seconds: int
) -> None:
    """Leases may look over, and jobs move; every answer is whole and has one end."""
    engines = [FakeEngine(MODEL, tokens_per_s=200, capacity=4) for _ in range(2)]
    rigs = [await make_rig(engine=engine).start() for engine in engines]
    jobs = [
        await submit_to_lane(backend, prompt=f"p{n}", max_tokens=200, deadline_s=LONG_S)
        for n in range(4)
    ]
    for job_id in jobs:
        await has_events(backend, job_id, 10)
    clock.step(seconds)
    for rig in rigs:
        await rig.sweeper.sweep()
    for job_id in jobs:
        end = await end_of(backend, job_id)
        assert (end.kind, end.usage.completion_tokens) == ("completed", 200)
        assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    await at_rest(backend)


@pytest.mark.fault(21)
async def test_a_worker_that_dies_after_the_clock_went_back_is_replaced(
    make_rig: MakeRig, backend: Backend, clock: Clock
) -> None:
    """Its next heartbeat puts its lease into the new time, and that one runs out."""
    dead = await make_rig(engine=CutEngine(3), lease_s=0.5).start()
    job_id = await hold_at(dead, backend, deadline_s=LONG_S)
    before = (await read(backend.store, job_id)).epoch
    clock.step(-HOUR_S)
    await beats(backend, dead.worker_id, clock)
    await dead.kill()
    living = await make_rig().start()

    async def is_ended() -> bool:
        await living.sweeper.sweep()
        return (await read(backend.store, job_id)).is_ended

    await eventually(is_ended)
    assert (await read(backend.store, job_id)).epoch > before
    assert text_of(await events_of(backend, job_id)) == await answer_to(backend, job_id)
    await at_rest(backend)


async def has_events(backend: Backend, job_id: str, count: int) -> None:
    """Wait until a log is so long."""

    async def is_long() -> bool:
        return (await read(backend.store, job_id)).next >= count

    await eventually(is_long)


async def beats(backend: Backend, worker_id: str, clock: Clock) -> None:
    """Wait until a worker's lease is one of the clock's time."""

    async def is_new() -> bool:
        workers = backend.keys.model(MODEL).workers
        score = await backend.lanes._redis.zscore(workers, worker_id)
        return score is not None and score < await backend.registry.now_ms() + 60_000

    await eventually(is_new)


NOW = "local now = now_ms()"
SAME = "local now = 1700000000000"
ABOVE = "math.max(tonumber(job[1]) + 1, now)"


async def two_starts(backend: Backend) -> tuple[str, int, int]:
    """Let two workers start a job, one after the other; returns the job and their epochs."""
    job = await submit(backend.store)
    return (
        job.id,
        await start(backend.store, job.id, "w1"),
        await start(backend.store, job.id, "w2"),
    )


@pytest.mark.fault(21)
async def test_a_clock_that_shows_the_same_time_twice_grants_two_epochs(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is higher, and the first worker is fenced."""
    cut_for_now(monkeypatch, job_store._START, NOW, SAME)
    job_id, first, second = await two_starts(backend)
    assert second > first
    outcome, _ = await append(backend.store, job_id, first, 3, "zombie")
    assert outcome is Outcome.FENCED


@pytest.mark.control(21)
async def test_an_epoch_of_the_clock_alone_would_be_granted_twice(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault bites: the first worker writes into the second one's job, and ends it."""
    cut_for_now(monkeypatch, job_store._START, NOW, SAME)
    cut_for_now(monkeypatch, job_store._START, ABOVE, "now")
    job_id, first, second = await two_starts(backend)
    assert second == first
    outcome, top = await append(backend.store, job_id, first, 3, "zombie")
    assert outcome is Outcome.OK
    assert (await backend.store.finish(job_id, (first, top), STOPPED, 600_000))[0] is Outcome.OK


@pytest.mark.fault(21)
def test_no_worker_reads_the_clock_of_its_wall() -> None:
    """Only clocks that cannot be set measure leases and waits: a step on the host is no event.

    The ages of files on disk are a matter of its own, and the expiry of API keys is the gateways'.
    """
    for folder in (*common.__path__, *worker.__path__):
        for path in Path(folder).rglob("*.py"):
            if path.parent.name != "kv" and path.name != "api_keys.py":
                assert not wall_clocks(ast.parse(path.read_text())), path


def wall_clocks(tree: ast.AST) -> set[str]:
    """Return what a module asks of clocks that can be set."""
    asked = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return asked & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
