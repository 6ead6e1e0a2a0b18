"""What the fleet works on: many short-worded jobs, or a few of a real model."""

import enum
from dataclasses import dataclass
from typing import Any

from bench.fleet.stack import Plan
from bench.kills.faults import LEASE_S, Fault
from common.settings import DEFAULT_MODEL

DRAIN_S = 2.0
NUM_MODEL_JOBS = 8

PROMPTS = tuple(f"Question {number} of a long night by the mill" for number in range(16))


class Engine(enum.StrEnum):
    """What answers the jobs."""

    FAKE = "fake"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Load:
    """What a fleet works on: so many jobs at first, and then so many a second."""

    name: str
    prompts: tuple[str, ...]
    num_jobs: int
    jobs_per_s: float
    max_tokens: int
    num_workers: int
    settings: dict[str, object]

    def plan(self, fault: Fault | None = None) -> Plan:
        """Return the fleet for this load and a fault."""
        own = {"lease_s": LEASE_S, "worker_drain_s": DRAIN_S, "log_level": "info"}
        return Plan(
            settings=own | self.settings,
            num_workers=self.num_workers,
            appendfsync=fault.appendfsync if fault else "everysec",
            behind_proxy=bool(fault and fault.behind_proxy),
        )

    def payload(self, number: int) -> dict[str, Any]:
        """Return what is submitted as job ``number``."""
        return {
            "prompt": self.prompts[number % len(self.prompts)],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


def fake_load(num_jobs: int, jobs_per_s: float, max_tokens: int, tokens_per_s: float) -> Load:
    """Return many jobs for the fake engine."""
    return Load(
        name=Engine.FAKE,
        prompts=PROMPTS,
        num_jobs=num_jobs,
        jobs_per_s=jobs_per_s,
        max_tokens=max_tokens,
        num_workers=4,
        settings={
            "engine": "fake",
            "model": "fake",
            "capacity": 512,
            "fake_tokens_per_s": tokens_per_s,
        },
    )


def local_load(max_tokens: int) -> Load:
    """Return a few jobs for the real model."""
    return Load(
        name=Engine.LOCAL,
        prompts=PROMPTS[:NUM_MODEL_JOBS],
        num_jobs=NUM_MODEL_JOBS,
        jobs_per_s=0,
        max_tokens=max_tokens,
        num_workers=2,
        settings={"engine": "local", "model": DEFAULT_MODEL, "device": "cpu", "threads": 1},
    )
