"""How tests wait: for events, under a deadline. The only polling of the suite is in here."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 15.0

_POLL_S = 0.005


def within(seconds: float = DEADLINE_S) -> asyncio.Timeout:
    """Return the deadline of an ``async with`` block: ``TimeoutError`` past it."""
    return asyncio.timeout(seconds)


async def eventually(predicate: Callable[[], Awaitable[T]], seconds: float = DEADLINE_S) -> T:
    """Return the predicate's first true answer; only for what nothing announces."""
    answer = await predicate()
    try:
        async with within(seconds):
            while not answer:
                await asyncio.sleep(_POLL_S)
                answer = await predicate()
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s; the last answer is {answer!r}") from None
    return answer
