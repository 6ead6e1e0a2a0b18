"""Many jobs' steps at once: they take as long as one job's, however far away Redis is."""

import asyncio
from collections.abc import Awaitable, Iterable


async def together(steps: Iterable[Awaitable[object]]) -> None:
    """Take all steps at once, in no order; raises what the first failed one raised, after all."""
    ends = await asyncio.gather(*steps, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
