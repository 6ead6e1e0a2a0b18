"""A loop that hangs is seen from outside it; one that is only busy is left alone."""

import asyncio
import threading
import time

import pytest

from tests.support.waiting import within
from worker.engine.local.watchdog import NUM_LOOKS
from worker.loop_watch import LoopWatch

pytestmark = pytest.mark.anyio

LIMIT_S = 0.2
LONG_S = 1.0


async def test_a_loop_that_hangs_is_told_once() -> None:
    """From the watching thread, while the loop still hangs."""
    hangs = threading.Semaphore(0)
    watch = LoopWatch(LIMIT_S, hangs.release)
    watch.start()
    await asyncio.sleep(0)
    assert hangs.acquire(timeout=20 * LIMIT_S)  # the loop is held here
    await asyncio.sleep(2 * LIMIT_S)
    assert not hangs.acquire(blocking=False)
    watch.stop()


async def test_a_loop_that_is_busy_again_and_again_is_left_alone() -> None:
    """Each of its steps is shorter than the limit, all of them together are not."""
    hangs = threading.Event()
    watch = LoopWatch(LONG_S, hangs.set)
    watch.start()
    for _ in range(3):
        time.sleep(LONG_S / 2)  # noqa: ASYNC251 - the loop must be held
        await asyncio.sleep(2 * LONG_S / NUM_LOOKS)
    assert not hangs.is_set()
    async with within():
        watch.stop()
