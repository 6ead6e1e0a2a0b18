"""What a tenant may use of a model, and what stands against one more job. Pure."""

import enum
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta


class Limits(msgspec.Struct, frozen=True):
    """A tenant's limits, for each model; 0 is no limit.

    ``max_queued`` jobs may wait and ``max_running`` run at once; what waits and runs may ask for
    ``tokens_per_minute`` tokens. Of the turns that tenants take, one of ``weight`` 2 has twice as
    many as one of 1.
    """

    max_queued: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    max_running: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0, le=10**12)] = 0
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0


NO_LIMITS = Limits()


class Verdict(enum.StrEnum):
    """What stands against one more job."""

    OK = "OK"
    MODEL_FULL = "MODEL_FULL"
    TENANT_FULL = "TENANT_FULL"
    TOO_FAST = "TOO_FAST"


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict, and what is left: jobs that may still wait, tokens that may be asked for.

    ``wait_s`` is the time until there are enough tokens, or, where there are, until there are all.
    """

    verdict: Verdict
    jobs_left: int
    tokens_left: int
    wait_s: float
