"""Tasks that nobody awaits: who hears of them, and how they end."""

import asyncio

import pytest

from tests.support.waiting import within
from worker.engine.background import Background

pytestmark = pytest.mark.anyio


async def test_one_that_breaks_is_told_of() -> None:
    """The others go on."""
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    background, done = Background(told.put_nowait), asyncio.Event()

    async def fail() -> None:
        raise ZeroDivisionError

    async def work() -> None:
        await broken.wait()
        done.set()

    broken = asyncio.Event()
    background.start(work())
    background.start(fail())
    async with within():
        assert isinstance(await told.get(), ZeroDivisionError)
        broken.set()
        await done.wait()


async def test_the_end_waits_for_what_is_quick_and_cancels_the_rest() -> None:
    """Being cancelled is nothing to tell of."""
    told: list[BaseException] = []
    background, ended = Background(told.append), list[str]()

    async def work(name: str, event: asyncio.Event) -> None:
        try:
            await event.wait()
        finally:
            ended.append(name)

    quick, never = asyncio.Event(), asyncio.Event()
    background.start(work("quick", quick))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(quick.set)
    await background.finish(60)
    assert ended == ["quick"]
    background.start(work("never", never))
    await background.finish(0.01)
    async with within():
        await background.finish(60)
    assert ended == ["quick", "never"]
    assert not told
