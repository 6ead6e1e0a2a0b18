"""Workers that die with a job in their hands, and those that come after them."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.worker.rig import Rig, hold_at
from worker.backend import Backend


async def die_holding(rig: Rig, backend: Backend, **spec: Any) -> str:
    """Start a rig, let it run a job until its engine's cut is logged, and kill it."""
    await rig.start()
    job_id = await hold_at(rig, backend, **spec)
    await rig.kill()
    return job_id


async def succeed(rig: Rig, dead: Rig) -> Rig:
    """Start a rig, and let the lease of the dead one be over."""
    await rig.start()
    await rig.bury(dead.worker_id)
    return rig


def hang_at(
    target: object, method: str, when: Callable[..., bool] = lambda *_args: True
) -> asyncio.Event:
    """Let a method never return: there its caller can be killed once the event is set."""
    is_reached = asyncio.Event()
    original = getattr(target, method)

    async def hang(*args: object) -> object:
        if not when(*args):
            return await original(*args)
        is_reached.set()
        return await asyncio.Event().wait()

    setattr(target, method, hang)
    return is_reached
