"""The Lua scripts: one per state change, loaded by content hash.

Every script is safe to repeat after a lost reply: it answers that the work is already done. Only
``admit`` takes a job's tokens again, which costs its tenant some of one minute.
"""

import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

Argument = str | bytes | int | float


class Script:
    """A script by name, behind the functions that it shares with others (``_SHARED.lua``)."""

    def __init__(self, name: str, *, shared: tuple[str, ...] = ()) -> None:
        folder = resources.files("common").joinpath("lua")
        parts = [*(f"_{part}" for part in shared), name]
        self.name = name
        self.text = "".join(folder.joinpath(f"{part}.lua").read_text() for part in parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: Sequence[str], args: Iterable[Argument]) -> Any:
        """Run the script and return Redis's reply; loads it where the server lacks it."""
        args = tuple(args)
        try:
            return await redis.evalsha(self.sha, len(keys), *keys, *args)  # type: ignore[misc,arg-type]
        except NoScriptError:
            return await redis.eval(self.text, len(keys), *keys, *args)  # type: ignore[misc,arg-type]

    def add_to(self, pipeline: Pipeline, keys: Sequence[str], args: Iterable[Argument]) -> None:
        """Queue the script in a pipeline. The caller answers ``NoScriptError`` with ``run``."""
        pipeline.evalsha(self.sha, len(keys), *keys, *args)  # type: ignore[arg-type]
