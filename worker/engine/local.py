"""The local engine: transformers on this machine, in a thread of its own.

Three places share the work. Tokenisation runs in a small pool, the model in ``EngineThread``, and
detokenisation here, on the event loop. torch is imported by ``load``, in a thread, for it takes
seconds.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import structlog

from common.errors import EngineFailed, StartupFailed
from common.jobs import FinishReason
from worker.engine.answer import Answer
from worker.engine.daemon import in_daemon
from worker.engine.meter import Meter
from worker.engine.options import EngineOptions
from worker.engine.protocol import (
    EngineInfo,
    EngineStats,
    Finished,
    Prefilled,
    Progress,
    Refused,
    Request,
    Sink,
)
from worker.engine.thread import Cancel, EngineThread, Made, Runner, Stop
from worker.model.checkpoint import Checkpoint, find_checkpoint

if TYPE_CHECKING:
    from worker.engine.intake import Intake, Prepared

_log = structlog.get_logger()

_CLOSE_S = 10.0
_NUM_TOKENIZER_THREADS = 2


@dataclass(slots=True, eq=False)
class _Run:
    """One request that has not ended."""

    request: Request
    sink: Sink
    answer: Answer | None = None  # set when its prompt is tokenised


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What there is once the model is in memory."""

    info: EngineInfo
    intake: "Intake"
    thread: EngineThread
    ended: asyncio.Future[None]  # when the thread has ended


class LocalEngine:
    """Runs up to ``capacity`` requests at once, each with a KV cache of its own."""

    def __init__(self, options: EngineOptions) -> None:
        self._checkpoint = find_checkpoint(options.model)
        self._options = options
        self._meter = Meter()
        # Requests are admitted in this order.
        self._orders = count()
        # Every request that has not ended, by its ID. What arrives for others is discarded.
        self._runs: dict[str, _Run] = {}
        self._pool = ThreadPoolExecutor(_NUM_TOKENIZER_THREADS, "tokenizer")
        # Set when the engine cannot go on, then ``_cause`` says why.
        self._failed = asyncio.Event()
        self._cause: BaseException | None = None
        self._is_closed = False
        # Set by ``load``.
        self._loaded: _Loaded | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        """Import torch, load the model and start its thread."""
        read = partial(_read_model, self._checkpoint, self._options, progress)
        info, intake, runner = await in_daemon(read, "model-loader")
        loop = asyncio.get_running_loop()

        def deliver(made: list[Made]) -> None:
            loop.call_soon_threadsafe(self._on_made, made)

        thread = EngineThread(runner, self._options.capacity, deliver)
        ended = in_daemon(thread.run, "engine")
        ended.add_done_callback(self._on_thread_ended)
        self._loaded = _Loaded(info, intake, thread, ended)
        return info

    async def probe(self, _request: Request) -> str:
        """Return "": nothing is cached yet."""
        return ""

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request and have its prompt tokenised."""
        loop = asyncio.get_running_loop()
        run = self._runs[request.id] = _Run(request, sink)
        if self._failed.is_set():
            return  # nothing is delivered any more
        prepare = self._parts.intake.prepare
        preparing = loop.run_in_executor(self._pool, prepare, request, next(self._orders))
        preparing.add_done_callback(partial(self._on_prepared, run))

    def cancel(self, request_id: str) -> None:
        """End a request; its cache is freed before the model's next step."""
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._parts.thread.post(Cancel(request_id))
            asyncio.get_running_loop().call_soon(self._deliver_cancelled, run)

    def stats(self) -> EngineStats:
        """Return the current load."""
        num_runs = len(self._runs)
        num_running = min(num_runs, self._loaded.thread.num_running) if self._loaded else 0
        return EngineStats(num_running, num_runs - num_running, self._meter.rate())

    async def wait_failed(self) -> None:
        """Wait until the engine's thread or one of its sinks breaks, and say how."""
        await self._failed.wait()
        raise EngineFailed(f"The local engine failed: {self._cause!r}") from self._cause

    async def close(self) -> None:
        """Stop after the current step; a model that is still being loaded is left alone."""
        self._is_closed = True
        self._runs.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            self._loaded.thread.post(Stop())
            # A step that hangs must not hold up the process; its thread is a daemon.
            await asyncio.wait((self._loaded.ended,), timeout=_CLOSE_S)

    @property
    def _parts(self) -> _Loaded:
        assert self._loaded is not None, "load() comes first"
        return self._loaded

    def _on_prepared(self, run: _Run, preparing: "asyncio.Future[Prepared | Refused]") -> None:
        if self._runs.get(run.request.id) is not run:  # cancelled, or the engine is closed
            return
        error = preparing.exception()
        if error is not None:
            _log.error("tokenizer_failed", request=run.request.id, exc_info=error)
            self._end(run, Refused("engine-error", f"The prompt cannot be tokenised: {error}"))
            return
        prepared = preparing.result()
        if isinstance(prepared, Refused):
            self._end(run, prepared)
            return
        run.answer = prepared.answer
        if prepared.answer.end is None:
            self._parts.thread.post(prepared.sequence)
        else:  # an earlier attempt made all tokens, and died before it could say so
            self._take(run, prepared.answer, ())

    def _on_made(self, made: list[Made]) -> None:
        """Hand out what one step made."""
        self._meter.add(sum(isinstance(output, int) for _, output in made))
        try:
            for request_id, output in made:
                self._hand_out(request_id, output)
        except Exception as error:
            # A sink broke, and the rest of the step is lost: nobody may take it for complete.
            self._fail(error)
            raise

    def _hand_out(self, request_id: str, output: Prefilled | Refused | int) -> None:
        run = self._runs.get(request_id)
        if run is None or run.answer is None:
            return
        match output:
            case int():
                self._take(run, run.answer, (output,))
            case Prefilled():
                run.sink(output)
            case Refused():
                self._end(run, output)

    def _take(self, run: _Run, answer: Answer, ids: tuple[int, ...]) -> None:
        delta = answer.take(ids)
        if delta.ids or delta.text:
            run.sink(delta)
        if answer.end is not None:
            # The thread knows nothing of stop strings. Of other ends it knows already.
            self._parts.thread.post(Cancel(run.request.id))
            self._end(run, answer.end)

    def _end(self, run: _Run, end: Finished | Refused) -> None:
        if self._runs.get(run.request.id) is run:  # else the sink has just cancelled it
            del self._runs[run.request.id]
            run.sink(end)

    def _deliver_cancelled(self, run: _Run) -> None:
        if not self._is_closed:
            run.sink(Finished(FinishReason.CANCELLED))

    def _on_thread_ended(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, cause: BaseException) -> None:
        self._cause = cause
        self._runs.clear()
        self._failed.set()


def _read_model(
    checkpoint: Checkpoint, options: EngineOptions, progress: Progress
) -> "tuple[EngineInfo, Intake, Runner]":
    """Load the model; runs in a thread of its own, where importing torch stops nobody."""
    progress("importing", 0.0)
    # Read when tqdm is imported. The log is no place for progress bars.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from worker.engine.parts import read_parts  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StartupFailed(
            f"The local engine needs {error.name}; run `pip install 'headrace[worker]'`."
        ) from error
    return read_parts(checkpoint, options, progress)
