"""The local engine: a transformers model on this machine, in a thread of its own.

Tokenisation runs in a small pool, the model in ``EngineThread``, and detokenisation here, on the
event loop. Whatever waits for a disk has a daemon thread: one that hangs holds up nobody else.
torch is imported by ``load``, in a thread, for it takes seconds.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import structlog

from common.errors import StartupFailed
from worker.engine.background import Background
from worker.engine.daemon import in_daemon
from worker.engine.local.made import Made, Outcome
from worker.engine.local.run import Run
from worker.engine.local.watchdog import NUM_LOOKS, Watchdog
from worker.engine.meter import Meter
from worker.engine.options import EngineOptions
from worker.engine.outlet import Outlet
from worker.engine.protocol import (
    Delta,
    EngineInfo,
    EngineStats,
    Output,
    Progress,
    Refused,
    Request,
    Sink,
)
from worker.model.checkpoint import Checkpoint, find_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.local.intake import Prepared
    from worker.engine.local.parts import Parts

_log = structlog.get_logger()

_CLOSE_S = 10.0
_NUM_TOKENIZER_THREADS = 2
_READ_S = 10.0  # a prompt that takes longer to read is sooner computed


class LocalEngine:
    """Runs up to ``capacity`` answers at once, in one continuous batch."""

    def __init__(self, options: EngineOptions) -> None:
        self._checkpoint = find_checkpoint(options.model)
        self._options = options
        self._meter = Meter()
        # Requests are admitted in this order.
        self._orders = count()
        # Every request that has not ended, by its ID. What arrives for others is discarded.
        self._runs: dict[str, Run] = {}
        self._pool = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, "tokenizer")
        self._outlet = Outlet("local", self._runs.clear)
        # For each of these a request waits, and would for ever.
        self._reading = Background(self._outlet.fail)
        # What was to be deleted must not be served.
        self._forgetting = Background(self._outlet.fail)
        # Set by ``load``: the model, the thread that runs it, when that has ended, who watches it.
        self._loaded: Parts | None = None
        self._ended: asyncio.Future[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        """Import torch, load the model and start its thread."""
        loop = asyncio.get_running_loop()

        def deliver(made: list[Made]) -> None:
            loop.call_soon_threadsafe(self._on_made, made)

        read = partial(_read_model, self._checkpoint, self._options, progress, deliver)
        parts = self._loaded = await in_daemon(read, "model-loader")
        self._ended = in_daemon(parts.thread.run, "engine")
        self._ended.add_done_callback(self._on_thread_ended)
        self._watchdog = loop.create_task(self._watch(), name="watchdog")
        return parts.info

    async def probe(self, request: Request) -> str:
        """Return how much of the prompt is cached, in whatever tier."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, self._parts.probe, request)
        if isinstance(found, str):
            return found
        return await in_daemon(partial(self._parts.look, found), "kv-prober")

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request and have its prompt tokenised."""
        loop = asyncio.get_running_loop()
        if request.id in self._runs:
            refusal = Refused("duplicate-request", "The engine works on this request already.")
            loop.call_soon(self._outlet.say, sink, refusal)
            return
        if not self._outlet.is_open:
            return  # nothing is delivered any more
        run = self._runs[request.id] = Run(request, sink)
        prepare = self._parts.prepare
        preparing = loop.run_in_executor(self._pool, prepare, request, next(self._orders))
        preparing.add_done_callback(partial(self._on_prepared, run))

    def cancel(self, request_id: str) -> None:
        """End a request; its blocks are free before the model's next step."""
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._parts.thread.cancel(run.sequence_ids)
            asyncio.get_running_loop().call_soon(self._deliver_cancelled, run)

    def forget(self, tenant: str, ids: tuple[int, ...]) -> None:
        """Have a sequence dropped from every tier, where no request needs it."""
        self._forgetting.start(self._parts.forget(tenant, ids))

    def stats(self) -> EngineStats:
        """Return the current load."""
        if self._loaded is None:
            return EngineStats()
        return self._loaded.stats(len(self._runs), self._meter.rate())

    async def wait_failed(self) -> None:
        """Wait until the engine's thread hangs, or it or what works for it breaks, and say how."""
        await self._outlet.wait_failed()

    async def close(self) -> None:
        """Stop soon and save the cache; a loading model is left alone.

        What is being forgotten is forgotten before, or it would be saved.
        """
        self._outlet.close()
        for run in self._runs.values():
            self._parts.thread.cancel(run.sequence_ids)
        self._runs.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._reading.cancel()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._loaded is not None and self._ended is not None:
            # A thread that has ended calls nothing any more.
            await self._forgetting.finish(0 if self._ended.done() else _CLOSE_S)
            self._loaded.thread.stop()
            # A step that hangs must not hold up the process; its thread is a daemon.
            await asyncio.wait((self._ended,), timeout=_CLOSE_S)
            # A thread that died may have left anything in its blocks.
            if self._ended.done() and self._ended.exception() is None:
                await in_daemon(self._loaded.save, "kv-saver")

    @property
    def _parts(self) -> "Parts":
        assert self._loaded is not None, "load() comes first"
        return self._loaded

    async def _watch(self) -> None:
        """End an engine whose step does not end: its jobs are another worker's then."""
        limit_s, watchdog = self._options.watchdog_s, Watchdog()
        while not watchdog.look(self._parts.thread.busy_since):  # noqa: ASYNC110 - time is awaited
            await asyncio.sleep(limit_s / NUM_LOOKS)
        self._outlet.fail(TimeoutError(f"a step has been running for {limit_s:g} s"))

    def _on_prepared(self, run: Run, preparing: "asyncio.Future[Prepared | Refused]") -> None:
        if self._runs.get(run.request.id) is not run:  # cancelled, or the engine is closed
            return
        try:
            prepared = preparing.result()
            outputs = [] if isinstance(prepared, Refused) else run.open(prepared)
        except Exception as error:  # noqa: BLE001 - one that cannot be prepared fails alone
            _log.error("prompt_failed", request=run.request.id, exc_info=error)
            self._end(run, Refused("engine-error", f"The prompt cannot be prepared: {error}"))
            return
        if isinstance(prepared, Refused):
            self._end(run, prepared)
            return
        for output in outputs:
            self._outlet.say(run.sink, output)
        if not prepared.on_disk:
            self._post(run, prepared)
            return
        self._reading.start(self._read_ahead(run, prepared))

    async def _read_ahead(self, run: Run, prepared: "Prepared") -> None:
        """Have the disk read before the model's thread needs it, and would wait.

        What is not there in time that thread reads itself, under the eyes of the watchdog.
        """
        fetch = partial(self._parts.fetch, prepared.on_disk)
        try:
            async with asyncio.timeout(_READ_S):
                await in_daemon(fetch, "kv-reader")
        except Exception as error:  # noqa: BLE001 - a block that is not read is no answer lost
            _log.warning("read_ahead_failed", request=run.request.id, error=repr(error))
        if self._runs.get(run.request.id) is run:
            self._post(run, prepared)

    def _post(self, run: Run, prepared: "Prepared") -> None:
        for sequence in prepared.sequences:
            self._parts.thread.post(sequence)
        self._end_if_over(run)  # an earlier attempt may have died before it could say so

    def _on_made(self, made: list[Made]) -> None:
        """Hand out what one step made."""
        if not self._outlet.is_open:
            return
        for sequence_id, output in made:
            request_id, _, choice = sequence_id.rpartition("#")
            run = self._runs.get(request_id)
            if run is not None:
                self._hand_out(run, int(choice), output)

    def _hand_out(self, run: Run, choice: int, output: Outcome) -> None:
        try:
            outputs = run.take(choice, output, self._parts.tokenizer)
        except Exception as error:  # noqa: BLE001 - one that cannot be decoded fails alone
            _log.error("answer_failed", request=run.request.id, exc_info=error)
            self._end(run, Refused("engine-error", f"The answer cannot be decoded: {error}"))
            return
        for said in outputs:
            if isinstance(said, Delta):
                self._meter.add(len(said.ids))
            self._say(run, said)
        self._end_if_over(run)

    def _say(self, run: Run, output: Output) -> None:
        if isinstance(output, Refused):
            self._end(run, output)
        elif self._runs.get(run.request.id) is run:  # else the sink has just cancelled it
            self._outlet.say(run.sink, output)

    def _end_if_over(self, run: Run) -> None:
        # The thread knows nothing of stop strings. Of other ends it knows already.
        self._parts.thread.cancel(run.take_stopped())
        end = run.end
        if end is not None:
            self._end(run, end)

    def _end(self, run: Run, end: Output) -> None:
        if self._runs.get(run.request.id) is run:
            del self._runs[run.request.id]
            self._parts.thread.cancel(run.sequence_ids)
            self._outlet.say(run.sink, end)

    def _deliver_cancelled(self, run: Run) -> None:
        self._outlet.say(run.sink, run.cancelled())

    def _on_thread_ended(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception()
        if error is not None:
            self._outlet.fail(error)


def _read_model(
    checkpoint: Checkpoint,
    options: EngineOptions,
    progress: Progress,
    deliver: "Callable[[list[Made]], None]",
) -> "Parts":
    """Load the model; runs in a thread of its own, where importing torch stops nobody."""
    progress("importing", 0.0)
    # Read when tqdm is imported. The log is no place for progress bars.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from worker.engine.local.parts import read_parts  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartupFailed(
            f"The local engine needs {error.name}; run `pip install 'headrace[worker]'`."
        ) from error
    return read_parts(checkpoint, options, progress, deliver)
