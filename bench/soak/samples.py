"""What is looked at while the soak runs: the processes, the server, the keys."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import psutil
from redis.asyncio import Redis

from bench.fleet.process import Process
from bench.fleet.stack import Fleet
from common.keys import Keys

TENANT_INDEX = "jobs:TENANT"
JOB_KINDS = ("{j}:job", "{j}:log")

_PAGE = 1000
_TAG = re.compile(r"\{(\w):[^}]*\}")
_OWN_NAMES = (
    (re.compile(r"^worker:.*"), "worker:WORKER"),
    (re.compile(r"^jobs:.*"), TENANT_INDEX),
    (re.compile(r":lane:.*"), ":lane"),
    (re.compile(r":ring:.*"), ":ring"),
)


class ProcessSample(msgspec.Struct, frozen=True):
    """One process at one moment."""

    name: str
    pid: int
    resident: int
    threads: int
    files: int
    cpu_s: float


class Sample(msgspec.Struct, frozen=True):
    """The fleet at one moment, ``at_s`` seconds after the start.

    ``index_bytes`` is the part of the server's memory that the tenant's index of jobs takes.
    """

    at_s: float
    processes: tuple[ProcessSample, ...]
    redis_bytes: int
    index_bytes: int
    clients: int
    keys: dict[str, int]
    submitted: int


async def take_sample(fleet: Fleet, began: float, count: Callable[[], int]) -> Sample:
    """Look at everything once; ``count`` tells how many jobs were submitted."""
    memory, clients = await fleet.redis.info("memory"), await fleet.redis.info("clients")
    index = await fleet.redis.memory_usage(Keys().tenant_jobs("default"))
    keys = await _count_keys(fleet.redis, Keys().prefix)
    return Sample(
        at_s=time.monotonic() - began,
        processes=tuple(_processes(fleet.processes)),
        redis_bytes=int(memory["used_memory"]),
        index_bytes=int(index or 0),
        clients=int(clients["connected_clients"]),
        keys=keys,
        submitted=count(),
    )


def _processes(processes: Iterable[Process]) -> Iterable[ProcessSample]:
    for process in processes:
        try:
            found = psutil.Process(process.pid)
            times = found.cpu_times()
            yield ProcessSample(
                name=process.name,
                pid=process.pid,
                resident=int(found.memory_info().rss),
                threads=int(found.num_threads()),
                files=int(found.num_fds()),
                cpu_s=float(times.user + times.system),
            )
        except psutil.Error:
            continue  # it was killed, and is not back


async def _count_keys(redis: Redis, prefix: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    async for key in redis.scan_iter(f"{prefix}:*", count=_PAGE):
        found[kind_of(key.decode()[len(prefix) + 1 :])] += 1
    return dict(sorted(found.items()))


def kind_of(name: str) -> str:
    """Return a key's kind: its name without its prefix, and without what is its own."""
    name = _TAG.sub(r"{\1}", name)
    for own, kind in _OWN_NAMES:
        name = own.sub(kind, name)
    return name
