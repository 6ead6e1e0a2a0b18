"""An engine whose requests are tasks: what the remote and the vLLM engine have in common."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from common.jobs import FinishReason
from worker.causes import first_cause, one_line
from worker.engine.meter import Meter
from worker.engine.outlet import Outlet
from worker.engine.protocol import (
    Delta,
    EngineStats,
    Finished,
    Output,
    Refused,
    Request,
    Sink,
)

_log = structlog.get_logger()

_ENDLESS = Refused("engine-error", "The engine left the answer without its end; submit it again.")


@dataclass(slots=True, eq=False)
class Ongoing:
    """One request that has not ended."""

    request: Request
    sink: Sink
    cancelled: Callable[[], Finished] = lambda: Finished(FinishReason.CANCELLED)


class TaskEngine(ABC):
    """Gives every request a task, at most ``capacity`` of which are served at once."""

    def __init__(self, name: str, capacity: int) -> None:
        self._name = name
        self._meter = Meter()
        # Fair: who waits for a slot gets one in order of arrival.
        self._slots = asyncio.Semaphore(capacity)
        self._num_running = 0
        # Every request that has not ended, by its ID. What comes for others is discarded.
        self._ongoing: dict[str, Ongoing] = {}
        # Their tasks until they are done: no task group could own what ``submit`` starts.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outlet = Outlet(name, self._ongoing.clear)

    @abstractmethod
    async def _serve(self, ongoing: Ongoing) -> None:
        """Say what there is to say of a request, its end included; cancelled to stop early."""

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; it is served when a slot is free."""
        if request.id in self._ongoing:
            refusal = Refused("duplicate-request", "The engine works on this request already.")
            asyncio.get_running_loop().call_soon(self._outlet.say, sink, refusal)
            return
        if not self._outlet.is_open:
            return  # nothing is delivered any more
        ongoing = self._ongoing[request.id] = Ongoing(request, sink)
        task = asyncio.create_task(self._wait_and_serve(ongoing), name=request.id)
        self._tasks[request.id] = task
        task.add_done_callback(self._on_task_done)

    def cancel(self, request_id: str) -> None:
        """End a request and its task."""
        ongoing = self._ongoing.pop(request_id, None)
        if ongoing is not None:
            self._tasks[request_id].cancel()
            asyncio.get_running_loop().call_soon(self._deliver_cancelled, ongoing)

    def forget(self, tenant: str, ids: tuple[int, ...]) -> None:  # noqa: B027 - nothing to do
        """Do nothing: no sequence of ours is kept here."""

    def stats(self) -> EngineStats:
        """Return the current load."""
        num_waiting = max(0, len(self._ongoing) - self._num_running)
        return EngineStats(self._num_running, num_waiting, self._meter.rate())

    async def wait_failed(self) -> None:
        """Wait until the engine or one of its sinks breaks; a request that fails is no reason."""
        await self._outlet.wait_failed()

    async def close(self) -> None:
        """End all tasks; nothing is delivered any more."""
        self._outlet.close()
        self._ongoing.clear()
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _say(self, ongoing: Ongoing, output: Output) -> None:
        if self._ongoing.get(ongoing.request.id) is not ongoing:
            return
        if isinstance(output, Delta) and not output.echo:
            self._meter.add(max(1, len(output.ids)))
        if isinstance(output, Finished | Refused):
            del self._ongoing[ongoing.request.id]
        self._outlet.say(ongoing.sink, output)

    def _explain(self, error: Exception) -> str | None:
        """Return what a request hears of an error of its own; None where the engine died of it."""
        what = f"{type(first_cause(error)).__name__}: {one_line(error)}"
        return f"The {self._name} engine cannot do the job: {what}"

    async def _wait_and_serve(self, ongoing: Ongoing) -> None:
        async with self._slots:
            self._num_running += 1
            try:
                await self._serve(ongoing)
            except Exception as error:  # one that cannot be served fails alone
                detail = self._explain(error)
                if detail is None:
                    raise
                _log.error("request_failed", request=ongoing.request.id, exc_info=error)
                self._say(ongoing, Refused("engine-error", detail))
            else:
                self._say(ongoing, _ENDLESS)  # dropped where the end was said
            finally:
                self._num_running -= 1

    def _deliver_cancelled(self, ongoing: Ongoing) -> None:
        self._outlet.say(ongoing.sink, ongoing.cancelled())

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if self._tasks.get(task.get_name()) is task:
            del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._outlet.fail(error)
