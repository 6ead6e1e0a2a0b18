"""Tasks of an engine that nobody awaits."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Runs tasks until they are done; ``on_error`` is told of one that breaks."""

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a task, at the loop's next turn."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def finish(self, timeout_s: float) -> None:
        """Wait for all tasks, for this long at most; what is not done then is cancelled."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self.cancel()

    def cancel(self) -> None:
        """Have every task end."""
        for task in self._tasks:
            task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_error(error)
