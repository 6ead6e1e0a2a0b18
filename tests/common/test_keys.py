"""Key names: one hash tag per script, and no two things under one name."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from common import keys
from common.jobs import Priority
from common.keys import ORPHANS, JobKeys, Keys, ModelKeys, scoped, unscoped
from common.names import is_name
from tests.support.leaks import UNEXPIRING

KEYS = Keys("hr")

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,20}", fullmatch=True).filter(is_name)


def _all_of_job(job: JobKeys) -> list[str]:
    return [job.record, job.log, job.live]


def _all_of_model(model: ModelKeys, tenant: str) -> list[str]:
    fixed = [model.lanes, model.jobs, model.workers, model.sweeper, model.bell, model.affinity]
    fixed.append(model.draining)
    lanes = [model.lane(f"{priority}:{tenant}") for priority in Priority]
    lanes += [model.lane(ORPHANS), model.lane(f"worker:{tenant}")]
    rings = [model.ring(priority) for priority in Priority]
    return [*fixed, *lanes, *rings, model.prompt(tenant, "p")]


def _slots(names: list[str]) -> set[int]:
    return {key_slot(name.encode()) for name in names}


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
    ours = Keys(prefix)
    found = [*_all_of_job(ours.job("j")), *_all_of_model(ours.model("m"), "t")]
    found += [ours.worker("w"), ours.worker_ctl("w"), ours.models, ours.secret]
    found += [ours.tenant_jobs("t"), ours.probe("g")]
    assert all(key.startswith(f"{prefix}:") for key in found)


@given(names, names, names, names)
def test_tenants_do_not_meet_in_a_prompt_id(a: str, b: str, c: str, d: str) -> None:
    """Names may have colons, and still no two pairs of tenant and prompt ID share a key."""
    model = KEYS.model("m")
    for one, other in [((a, b), (c, d)), ((f"{a}:{b}", c), (a, f"{b}:{c}"))]:
        assert (model.prompt(*one) == model.prompt(*other)) == (one == other)
    assert unscoped(scoped(f"{a}:{b}", c)) == (f"{a}:{b}", c)


@given(names)
def test_a_doorbell_names_its_job(job_id: str) -> None:
    """The relay finds the job in the channel's name."""
    assert KEYS.job_of_live(KEYS.job(job_id).live) == job_id


def test_the_list_of_what_may_stay_is_the_written_one() -> None:
    """The keys that the tests let stay are those whose row says that no TTL ends them."""
    row = re.compile(
        r"^``(.+?)``  .*?  (?:until it is empty|until revoked|for ever)$", re.MULTILINE
    )
    samples = {"MODEL": "m", "PRIO": "low", "TENANT": "t"}
    names = {
        re.sub("MODEL|PRIO|TENANT", lambda word: samples[word[0]], name)
        for name in row.findall(keys.__doc__ or "")
    }
    matched = {name: [p for p in UNEXPIRING if re.fullmatch(p, name)] for name in names}
    assert all(len(patterns) == 1 for patterns in matched.values())
    assert {patterns[0] for patterns in matched.values()} == set(UNEXPIRING)
