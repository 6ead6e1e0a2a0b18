"""Where the outputs of an engine leave it, for as long as the engine is whole."""

import asyncio
from collections.abc import Callable

import structlog

from common.errors import EngineFailed
from worker.engine.protocol import Output, Sink

_log = structlog.get_logger()


class Outlet:
    """Calls sinks until the engine is closed or has failed; keeps the cause for who waits for it.

    ``on_failure`` is called once, before ``wait_failed`` raises.
    """

    def __init__(self, name: str, on_failure: Callable[[], None]) -> None:
        self._name = name
        self._on_failure = on_failure
        self._failed = asyncio.Event()
        self._cause: BaseException | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Tell whether anything is delivered still."""
        return not self._is_closed and not self._failed.is_set()

    def say(self, sink: Sink, output: Output) -> None:
        """Call a sink; one that breaks ends the engine: nobody may take its job for complete."""
        if not self.is_open:
            return
        try:
            sink(output)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the engine
            self.fail(error)

    def fail(self, cause: BaseException) -> None:
        """Deliver nothing any more, and say why; the first cause counts."""
        if self._failed.is_set():
            return
        _log.error("engine_failed", engine=self._name, exc_info=cause)
        self._cause = cause
        self._on_failure()
        self._failed.set()

    def close(self) -> None:
        """Deliver nothing any more."""
        self._is_closed = True

    async def wait_failed(self) -> None:
        """Wait until the engine or one of its sinks breaks; raises ``EngineFailed``."""
        await self._failed.wait()
        raise EngineFailed(f"The {self._name} engine failed: {self._cause!r}") from self._cause
