"""``dead list``, ``retry`` and ``drop``."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis as SyncRedis
from typer.testing import Result

from common.connections import lease_client
from common.dead_letters import Letter, encode_letter
from common.events import Accepted, ErrorInfo, Started
from common.jobs import JobSpec
from common.keys import Keys
from tests.support.jobs import MODEL

Headrace = Callable[..., Result]
LOST = ErrorInfo("worker-lost", "It lost three workers.")


@pytest.fixture
def manage(
    headrace: Headrace, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run ``headrace dead …`` on the test's own prefix, for one model."""
    monkeypatch.setenv("HEADRACE_KEY_PREFIX", keys.prefix)

    def run(*arguments: str) -> Result:
        return headrace("dead", *arguments, "--model", MODEL, "--redis", redis_url)

    return run


def bury(redis: SyncRedis, keys: Keys, job: str, *, is_readable: bool = True) -> None:
    """Write a dead letter of this job."""
    spec = JobSpec(MODEL, 8, prompt="Once") if is_readable else None
    history = (Accepted(job, MODEL), Started("w1", 1))
    letter = Letter(job, "acme", LOST, spec, 1, 3, history)
    redis.xadd(keys.model(MODEL).dead, {"letter": encode_letter(letter)})


@pytest.fixture
def server(redis_url: str, keys: Keys) -> Iterator[SyncRedis]:
    """The server, and what the test left in it is removed."""
    with closing(lease_client(redis_url, 5)) as client:
        yield client
        for name in client.scan_iter(f"{keys.prefix}*"):
            client.delete(name)


def test_the_list_says_why(manage: Callable[..., Result], server: SyncRedis, keys: Keys) -> None:
    """A line per job; for programs with its history and all that it asked for."""
    bury(server, keys, "job_a")
    header, row = manage("list").stdout.splitlines()
    assert header.split() == ["JOB", "MODEL", "TENANT", "SINCE", "ATTEMPTS", "TOKENS", "WHY"]
    cells = row.split()
    assert cells[:3] + cells[4:] == ["job_a", MODEL, "acme", "1", "3", "worker-lost"]
    [entry] = json.loads(manage("list", "--json").stdout)
    assert (entry["workers"], entry["job_spec"]["prompt"]) == (["w1"], "Once")
    assert [event["kind"] for event in entry["history"]] == ["accepted", "started"]


def test_all_models_are_those_with_letters(
    headrace: Headrace, server: SyncRedis, keys: Keys, redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also one whose last worker was heard of days ago: poison has killed them all."""
    monkeypatch.setenv("HEADRACE_KEY_PREFIX", keys.prefix)
    bury(server, keys, "job_a")
    listed = headrace("dead", "list", "--json", "--redis", redis_url)
    assert [entry["model"] for entry in json.loads(listed.stdout)] == [MODEL]


def test_a_retry_is_a_new_job(manage: Callable[..., Result], server: SyncRedis, keys: Keys) -> None:
    """It waits in its tenant's lane; the letter is gone; the others stay."""
    for job in ("job_a", "job_b"):
        bury(server, keys, job)
    retried = manage("retry", "job_a")
    assert retried.exit_code == 0, retried.output
    job_id = retried.stdout.strip()
    record: Any = server.hgetall(keys.job(job_id).record)
    assert (record[b"tenant"], record[b"state"]) == (b"acme", b"queued")
    lane: Any = server.xrange(keys.model(MODEL).lane("normal:acme"))
    assert [fields[b"job"].decode() for _, fields in lane] == [job_id]
    assert [entry["job"] for entry in json.loads(manage("list", "--json").stdout)] == ["job_b"]


def test_a_retry_that_was_cut_off_runs_the_job_once(
    manage: Callable[..., Result],
    server: SyncRedis,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The letter is dropped last, and the new job's ID follows from it."""
    bury(server, keys, "job_a")
    with monkeypatch.context() as patched:
        patched.setattr("common.dead_letters.DeadLetters.drop", _cut_off)
        assert manage("retry", "job_a").exit_code == 1
    assert manage("retry", "--all").exit_code == 0
    assert server.xlen(keys.model(MODEL).lane("normal:acme")) == 1


async def _cut_off(*_: object) -> bool:
    raise ConnectionError("cut off")


def test_what_cannot_be_read_cannot_be_retried(
    manage: Callable[..., Result], server: SyncRedis, keys: Keys
) -> None:
    """It says so, and stays until it is dropped."""
    bury(server, keys, "job_a", is_readable=False)
    retried = manage("retry", "job_a")
    assert (retried.exit_code, retried.stdout) == (0, "")
    assert "headrace dead drop job_a" in retried.stderr
    assert manage("drop", "--all").exit_code == 0
    assert json.loads(manage("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("drop", "job_x"), 1, "no dead letter of job_x"),
        (("drop",), 2, "--all"),
        (("retry", "job_x", "--all"), 2, "--all"),
    ],
)
def test_what_is_meant_must_be_clear(
    manage: Callable[..., Result], arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    """A job without a letter, no job at all, and both a job and all are refused."""
    refused = manage(*arguments)
    assert refused.exit_code == exit_code
    assert said in refused.stderr
