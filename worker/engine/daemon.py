"""Work in daemon threads."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_daemon(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run a function in its own daemon thread and return a future of its outcome.

    Unlike ``asyncio.to_thread``: a process that wants to end does not wait for it.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def main() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001 - it goes to whoever awaits the outcome
            outcome.set_exception(error)

    threading.Thread(target=main, name=name, daemon=True).start()
    return asyncio.wrap_future(outcome)
