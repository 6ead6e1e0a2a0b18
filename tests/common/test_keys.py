"""Key names: one hash tag per script, and no two things under one name."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from common.jobs import Priority
from common.keys import ORPHANS, JobKeys, Keys, ModelKeys
from common.names import is_name

KEYS = Keys("hr")

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,20}", fullmatch=True).filter(is_name)


def _all_of_job(keys: JobKeys) -> list[str]:
    return [keys.record, keys.log, keys.live]


def _all_of_model(keys: ModelKeys, tenant: str) -> list[str]:
    fixed = [keys.lanes, keys.jobs, keys.workers, keys.sweeper, keys.bell, keys.lane(ORPHANS)]
    lanes = [keys.lane(f"{priority}:{tenant}") for priority in Priority]
    return fixed + lanes + [keys.ring(priority) for priority in Priority]


def _slots(keys: list[str]) -> set[int]:
    return {key_slot(key.encode()) for key in keys}


@given(names)
def test_the_keys_of_a_job_share_a_slot(job_id: str) -> None:
    """A script may touch the record, the log and the doorbell of one job in a cluster."""
    assert len(_slots(_all_of_job(KEYS.job(job_id)))) == 1


@given(names, names)
def test_the_keys_of_a_model_share_a_slot(model: str, tenant: str) -> None:
    """A script may touch all lanes and lists of one model in a cluster, whatever the tenant."""
    assert len(_slots(_all_of_model(KEYS.model(model), tenant))) == 1


def test_jobs_are_spread_over_the_slots() -> None:
    """The tag is the job's, not the installation's: a cluster shares the work."""
    slots = _slots([KEYS.job(f"job_{i}").record for i in range(100)])
    assert len(slots) > 90


@given(st.sets(names, min_size=3, max_size=3))
def test_no_two_things_have_one_name(words: set[str]) -> None:
    """Whatever jobs, models, tenants and workers are called, their keys differ."""
    found: list[str] = [KEYS.models, KEYS.secret]
    for word, tenant in itertools.permutations(words, 2):
        found += [KEYS.worker(f"{word}:{tenant}x")]
    for word in words:
        found += [*_all_of_job(KEYS.job(word)), KEYS.worker(word), KEYS.tenant_jobs(word)]
        found += [*_all_of_model(KEYS.model(word), min(words)), KEYS.probe(word)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("prefix", ["hr", "a-b_9"])
def test_every_key_begins_with_the_prefix(prefix: str) -> None:
    """Installations with different prefixes share a server without meeting."""
    keys = Keys(prefix)
    found = [*_all_of_job(keys.job("j")), *_all_of_model(keys.model("m"), "t")]
    found += [keys.worker("w"), keys.worker_ctl("w"), keys.models, keys.secret]
    found += [keys.tenant_jobs("t"), keys.probe("g")]
    assert all(key.startswith(f"{prefix}:") for key in found)


@given(names)
def test_a_doorbell_names_its_job(job_id: str) -> None:
    """The relay finds the job in the channel's name."""
    assert KEYS.job_of_live(KEYS.job(job_id).live) == job_id
