"""The doctor's checks, on real servers, and the doctor itself."""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from typer.testing import Result

from common.dead_letters import Letter, encode_letter
from common.events import ErrorInfo
from common.jobs import Priority
from common.keys import Keys
from common.lanes import Lanes
from common.names import random_job_id
from headrace import checks
from headrace.checks import Check, Level
from headrace.data_dir import StackNote, locked
from tests.headrace.fake_gateway import fake_gateway_in_thread, json_reply

Headrace = Callable[..., Result]

HOUR_MS = 3_600_000


@pytest.mark.anyio
async def test_a_fresh_server_lacks_only_workers(redis: Redis, keys: Keys) -> None:
    """Everything else about a test server is well, or said to be unsafe."""
    found = {check.name: check for check in await checks.run_all(redis, keys)}
    assert found["workers"].level is Level.WARN
    assert found["lanes"] == Check("lanes", Level.OK, "empty")
    assert found["clock"].level is Level.OK
    assert found["server"].level is Level.OK
    assert all(check.todo for check in found.values() if check.level is not Level.OK)


@pytest.mark.anyio
async def test_work_without_a_worker_fails(redis: Redis, keys: Keys) -> None:
    """What waits for nobody is named, with the command that helps."""
    now_ms = int((await redis.time())[0]) * 1000
    await Lanes(redis, keys, "m").enqueue(random_job_id(), "t", Priority.LOW, now_ms + HOUR_MS)
    await redis.zadd(keys.models, {"m": now_ms})
    await redis.expire(keys.models, 60)
    found = await checks.lanes(redis, keys)
    assert (found.level, found.found) == (Level.FAIL, "m: 1 waiting, 0 held")
    assert found.todo == "start a worker: headrace worker --model m"


@pytest.mark.anyio
async def test_jobs_that_were_given_up_are_a_warning(redis: Redis, keys: Keys) -> None:
    """They have their end; somebody should look why."""
    assert await checks.dead_letters(redis, keys) == Check("dead", Level.OK, "no job was given up")
    letter = encode_letter(Letter("job_a", "acme", ErrorInfo("worker-lost", "Lost.")))
    await redis.xadd(keys.model("m").dead, {"letter": letter})
    await redis.expire(keys.model("m").dead, 60)
    found = await checks.dead_letters(redis, keys)
    assert (found.level, found.found) == (Level.WARN, "1 job was given up")
    assert "headrace dead list" in found.todo


class SlowClock:
    """A server whose clock stands still."""

    async def time(self) -> tuple[int, int]:
        """Return the time."""
        return 1000, 0


class Evicting:
    """A server that throws jobs away."""

    async def config_get(self, _name: str) -> dict[str, str]:
        """Return the setting."""
        return {"maxmemory-policy": "allkeys-lru"}


class Volatile:
    """A server without append-only file."""

    async def info(self, _section: str) -> dict[str, object]:
        """Return what there is."""
        return {"aof_enabled": 0, "redis_version": "6.2.1"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("check", "server", "level"),
    [
        (checks.clock, SlowClock(), Level.WARN),
        (checks.eviction, Evicting(), Level.FAIL),
        (checks.durability, Volatile(), Level.WARN),
        (checks.version, Volatile(), Level.FAIL),
    ],
)
async def test_what_is_wrong_is_said(
    check: Callable[[object, Keys], Awaitable[Check]], server: object, level: Level
) -> None:
    """Every finding that is not ``ok`` says what to do."""
    found = await check(server, Keys())
    assert found.level is level
    assert found.todo


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "level"),
    [(ResponseError("NOPERM"), Level.WARN), (RedisConnectionError(), Level.FAIL)],
)
async def test_a_check_that_cannot_look_is_a_finding(
    error: Exception, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A managed server that refuses a command does not stop the doctor."""

    async def refused(_redis: object, _keys: Keys) -> Check:
        raise error

    monkeypatch.setattr(checks, "OF_EACH", (refused,))
    monkeypatch.setattr(checks, "OF_ALL", (refused,))
    found = await checks.run_all(None, Keys())  # type: ignore[arg-type]
    assert [(check.name, check.level) for check in found] == [("refused", level)] * 2


def test_a_doctor_without_anything_fails(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is a line with an arrow to what to do."""
    monkeypatch.setenv("HEADRACE_REDIS", "redis://127.0.0.1:1")
    result = headrace("doctor", url="http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "fail  redis     redis://127.0.0.1:1: " in result.output
    assert "→ start one with `headrace up`" in result.output
    gateway = result.output[result.output.index("fail  gateway") :]
    assert gateway.startswith("fail  gateway   no gateway answers at http://127.0.0.1:1 (")
    assert gateway.count("start one") == 1


def test_the_doctor_looks_at_the_server_that_is_named(headrace: Headrace) -> None:
    """A flag wins over what runs here."""
    result = headrace("doctor", "--redis", "redis://127.0.0.1:2", url="http://127.0.0.1:1")
    assert "fail  redis     redis://127.0.0.1:2: " in result.output


def test_the_doctor_looks_at_the_stack_that_runs(headrace: Headrace, tmp_path: Path) -> None:
    """The embedded server is found without a setting."""
    ready = json_reply({"status": "ready", "checks": {"redis": True}})
    with (
        fake_gateway_in_thread(ready) as gateway,
        locked(tmp_path / "headrace") as data_dir,
    ):
        data_dir.announce(StackNote(1, "unix:///nowhere/valkey.sock"))
        result = headrace("doctor", "--json", url=gateway.url)
    found = {check["name"]: check for check in json.loads(result.output)}
    assert found["redis"]["found"].startswith("unix:///nowhere/valkey.sock: ")
    assert found["gateway"]["level"] == "ok"


def test_the_doctor_needs_a_password_that_the_stack_does_not_keep(
    headrace: Headrace, tmp_path: Path
) -> None:
    """A masked URL is not tried; the line says how to name the server."""
    with locked(tmp_path / "headrace") as data_dir:
        data_dir.announce(StackNote(os.getpid(), "redis://:***@127.0.0.1:1"))
        result = headrace("doctor", "--json", url="http://127.0.0.1:1")
    found = {check["name"]: check for check in json.loads(result.output)}
    assert found["redis"]["level"] == "fail"
    assert found["redis"]["todo"] == "name that server with --redis"


def test_a_gateway_that_is_not_ready_fails(headrace: Headrace) -> None:
    """The doctor names what it lacks."""
    answer = json_reply({"status": "not_ready", "checks": {"redis": True, "worker": False}}, 503)
    with fake_gateway_in_thread(answer) as gateway:
        result = headrace("doctor", "--json", url=gateway.url)
    found = {check["name"]: check for check in json.loads(result.output)}
    assert found["gateway"]["level"] == "fail"
    assert found["gateway"]["found"].endswith("is not ready, lacks: worker")
