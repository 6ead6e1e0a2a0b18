"""Steps that are taken together end together."""

import asyncio

import pytest

from worker.together import together

pytestmark = pytest.mark.anyio


async def test_no_step_waits_for_another() -> None:
    """Each of them gets as far as it can by itself."""
    is_met = asyncio.Barrier(3)
    await together(is_met.wait() for _ in range(3))


async def test_the_first_failure_is_raised_after_all_steps() -> None:
    """First in the order of the steps, whichever failed earlier; none is left behind."""
    may_fail, done = asyncio.Event(), list[str]()

    async def fail_late() -> None:
        await may_fail.wait()
        raise LookupError

    async def fail_early() -> None:
        may_fail.set()
        raise ValueError

    async def succeed() -> None:
        await may_fail.wait()
        done.append("it")

    with pytest.raises(LookupError):
        await together([fail_late(), fail_early(), succeed()])
    assert done == ["it"]
