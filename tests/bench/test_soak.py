"""The soak finds what grows, and nothing else."""

import math

import pytest

from bench.soak.samples import JOB_KINDS, ProcessSample, Sample, kind_of
from bench.soak.verdict import (
    MAX_LIFE_S,
    MAX_REDIS,
    MAX_RESIDENT,
    MIB,
    growths,
    is_long_enough,
    key_counts,
    slope_per_hour,
)

RETENTION_S = 60.0
STEP_S = 10
JOBS_PER_S = 2
NUM_SAMPLES = 181


def sample(number: int, *, leak: float = 0.0, files: int = 20, keys: int = 120) -> Sample:
    """Return what is seen after ``number`` steps; ``leak`` is in bytes a second."""
    at_s = float(number * STEP_S)
    resident = round(50 * MIB + leak * at_s)
    process = ProcessSample("worker-0", 1, resident, threads=2, files=files, cpu_s=0)
    index_bytes = 100 * number
    return Sample(
        at_s=at_s,
        processes=(process,),
        redis_bytes=round(5 * MIB + leak * at_s) + index_bytes,
        index_bytes=index_bytes,
        clients=9,
        keys=dict.fromkeys(JOB_KINDS, min(keys, number * STEP_S * JOBS_PER_S)),
        submitted=number * STEP_S * JOBS_PER_S,
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("{j:job_12}:log", "{j}:log"),
        ("{m:org/m:7b}:lane:high:acme", "{m}:lane"),
        ("{m:x}:ring:low", "{m}:ring"),
        ("worker:host-1:ctl", "worker:WORKER"),
        ("jobs:default", "jobs:TENANT"),
        ("secret", "secret"),
    ],
)
def test_a_key_has_a_kind(name: str, kind: str) -> None:
    """What is a job's, a model's or a worker's own is left out."""
    assert kind_of(name) == kind


def test_a_slope_is_that_of_the_line() -> None:
    """Noise that goes up and down is none."""
    assert slope_per_hour([(0, 1), (1800, 2), (3600, 3)]) == pytest.approx(2)
    assert slope_per_hour([(0, 1), (10, 3), (20, 1)]) == pytest.approx(0)
    assert slope_per_hour([(5, 1)]) == 0


def test_a_flat_fleet_is_flat() -> None:
    """Steady figures pass, and so does an index that grows as it must."""
    samples = [sample(number, files=20 + number % 2) for number in range(NUM_SAMPLES)]
    assert is_long_enough(samples)
    assert all(each.is_flat for each in growths(samples, ["worker-0"]))


def test_what_leaks_in_the_first_half_alone_is_no_leak() -> None:
    """Caches fill once."""
    samples = [sample(min(number, 60), leak=1e5) for number in range(NUM_SAMPLES)]
    samples = [
        Sample(number * 10.0, each.processes, each.redis_bytes, each.index_bytes, 9, {}, 0)
        for number, each in enumerate(samples)
    ]
    assert all(each.is_flat for each in growths(samples, ["worker-0"]))


def test_a_leak_of_memory_is_found() -> None:
    """Of a process, and of the server."""
    leak = 2 * max(MAX_RESIDENT, MAX_REDIS) / 3600
    samples = [sample(number, leak=leak) for number in range(NUM_SAMPLES)]
    growing = [each.what for each in growths(samples, ["worker-0"]) if not each.is_flat]
    assert growing == ["worker-0, resident", "server, used_memory without the index"]


def test_a_leak_of_files_is_found() -> None:
    """One descriptor a minute is one too many."""
    samples = [sample(number, files=20 + number // 6) for number in range(NUM_SAMPLES)]
    [growing] = [each.what for each in growths(samples, ["worker-0"]) if not each.is_flat]
    assert growing == "worker-0, open files"


def test_a_short_run_is_not_judged() -> None:
    """Ten minutes of a second half are the least."""
    assert not is_long_enough([sample(number) for number in range(31)])


def test_keys_are_explained_by_the_retention() -> None:
    """So many as there were jobs in that time and a little more, and not one more."""
    num_steps = math.ceil((RETENTION_S + MAX_LIFE_S) / STEP_S)
    explained = JOBS_PER_S * STEP_S * num_steps
    fine = [sample(number, keys=explained) for number in range(NUM_SAMPLES)]
    assert all(each.is_explained for each in key_counts(fine, RETENTION_S))
    leaking = [sample(number, keys=explained + 1) for number in range(NUM_SAMPLES)]
    assert not any(each.is_explained for each in key_counts(leaking, RETENTION_S))
