"""Ctrl-C and SIGTERM for commands that have something to finish."""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first signal cancels the current task, every later one calls ``force``.

    The task sees ``CancelledError`` and ends in its own order; ``received`` tells its caller that
    the end was asked for.
    """

    def __init__(self, say: Callable[[], None] | None = None) -> None:
        self.received = False
        self._say = say  # called at the first signal
        self.force: Callable[[], None] | None = None
        """Called at every later one."""
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if not self.received:
            self.received = True
            if self._say is not None:
                self._say()
            if self._task is not None:
                self._task.cancel()
        elif self.force is not None:
            self.force()
