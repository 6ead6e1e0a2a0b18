"""A fault every minute, on the processes that are there for it: the last gateway and worker."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import msgspec

from bench.fleet.stack import Fleet

EVERY_S = 60.0
FIRST_S = 30.0
DOWN_S = 2.0
FROZEN_S = 14.0  # past the lease


class Struck(msgspec.Struct, frozen=True):
    """What was done, and when (seconds after the start)."""

    at_s: float
    what: str


async def kill_worker(fleet: Fleet) -> None:
    """Kill the last worker; it comes back soon."""
    victim = fleet.workers[-1]
    await victim.kill()
    await asyncio.sleep(DOWN_S)
    await fleet.start_worker(victim)


async def kill_gateway(fleet: Fleet) -> None:
    """Kill the last gateway; it comes back soon."""
    victim = fleet.gateways[-1]
    await victim.process.kill()
    await asyncio.sleep(DOWN_S)
    await victim.start()


async def kill_connections(fleet: Fleet) -> None:
    """Let the server end all connections."""
    for kind in ("pubsub", "normal"):
        await fleet.redis.client_kill_filter(_type=kind)


async def freeze_worker(fleet: Fleet) -> None:
    """Freeze the last worker past its lease."""
    victim = fleet.workers[-1]
    victim.freeze()
    await asyncio.sleep(FROZEN_S)
    victim.thaw()


FAULTS: tuple[tuple[str, Callable[[Fleet], Awaitable[None]]], ...] = (
    ("worker killed", kill_worker),
    ("gateway killed", kill_gateway),
    ("CLIENT KILL", kill_connections),
    ("worker frozen", freeze_worker),
)


async def strike(fleet: Fleet, began: float, struck: list[Struck]) -> None:
    """Do one after the other, for ever."""
    await asyncio.sleep(FIRST_S)
    for what, fault in itertools.cycle(FAULTS):
        due = time.monotonic() + EVERY_S
        struck.append(Struck(time.monotonic() - began, what))
        await fault(fleet)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
