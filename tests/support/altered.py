"""Headrace's commands with something changed: ``python -m tests.support.altered CHANGE,… COMMAND``.

A change takes one protection away, so that a control can show that its fault bites; or it builds a
fault in that only the process itself can have. Each fails loudly where the code that it changes is
not what it was.
"""

import asyncio
import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from common import connections, events, job_store
from gateway.event_stream import EventStream
from gateway.protocol import HttpConnection
from gateway.relay import Relay
from headrace.cli import main
from tests.support.cutting import cut
from worker.attempt import AttemptLog
from worker.bell import Bell
from worker.engine import fake
from worker.engine.fake import FakeEngine
from worker.engine.protocol import Delta, Output, Request, Sink
from worker.lease import BEATS_PER_LEASE, Lease
from worker.loop_watch import LoopWatch
from worker.main import Worker
from worker.runner import Runner
from worker.sweeper import Sweeper

SHORT_TIMEOUT_S = 0.3
TOXIC_AT = 5
"""At its so many-th token an engine does what a toxic prompt says."""

EPOCH_CHECK = "if job[1] ~= ARGV[2] then return { 'FENCED', next } end\n"
REPEAT_CHECK = "for i = 4 + next - n, #ARGV do"
GAP_CHECK = "if n > next then return { 'GAP', next } end\n"


def _replace(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


async def _forever(*_args: object) -> None:
    await asyncio.Event().wait()


async def _nothing(*_args: object, **_options: object) -> None:
    pass


def no_sweep() -> None:
    """Let nobody look for the jobs of dead workers."""
    _replace(Sweeper, "sweep", _nothing)


def no_hand_over() -> None:
    """Leave a draining worker's jobs where they are."""
    _replace(Runner, "hand_over", _nothing)


def no_fence() -> None:
    """Let a worker write on, whoever owns its jobs by now, and let it believe that it may."""
    for script in (job_store._APPEND, job_store._FINISH):
        cut(script, EPOCH_CHECK)
    _replace(Lease, "is_current", property(lambda _lease: True))
    _replace(Runner, "rejoin", _forever)


def no_repeat_check() -> None:
    """Let an append write what the log has already."""
    cut(job_store._APPEND, GAP_CHECK)
    cut(job_store._APPEND, REPEAT_CHECK, "for i = 4, #ARGV do")


def no_second_sending() -> None:
    """Let a worker believe that a log keeps what it once had."""
    confirm = AttemptLog.confirm

    def confirm_forward(log: AttemptLog, next_n: int) -> None:
        confirm(log, max(next_n, log.confirmed))

    _replace(AttemptLog, "confirm", confirm_forward)


def reckless() -> None:
    """Start any job beside any other, however many workers it has cost."""
    _replace(Runner, "_may_risk", lambda _runner, _job: True)


def lease_in_loop() -> None:
    """Renew the lease from the event loop, as most job queues do."""

    async def beat(lease: Lease) -> None:
        while not lease._stopped:
            lease._beat_once()
            await asyncio.sleep(lease._lease_s / BEATS_PER_LEASE)

    def start(lease: Lease) -> None:
        lease._task = asyncio.create_task(beat(lease))  # type: ignore[attr-defined]

    def stop(lease: Lease) -> None:
        lease._stopped = True

    _replace(Lease, "start", start)
    _replace(Lease, "stop", stop)


def no_loop_watch() -> None:
    """Let nobody see that an event loop hangs."""
    _replace(LoopWatch, "start", lambda _watch: None)
    _replace(LoopWatch, "stop", lambda _watch: None)


def no_resync() -> None:
    """Never compare a silent stream with its log."""
    _replace(Relay, "_compare", _nothing)


def hoards() -> None:
    """Write to every reader, whether it keeps up or not."""
    _replace(HttpConnection, "is_writable", property(lambda _connection: True))


def hurries() -> None:
    """Close a stream's connection as soon as its last frame is handed over."""
    pump = EventStream._pump

    async def pump_and_hurry(stream: EventStream) -> bool:
        finished = await pump(stream)
        assert stream._connection
        stream._connection.abort()
        return finished

    _replace(EventStream, "_pump", pump_and_hurry)


def impatient() -> None:
    """Do not wait for a server that is not there yet."""
    _replace(Worker, "_wait_for_redis", _ask_once)
    _replace(sys.modules["gateway.main"], "is_open_door", lambda _settings: False)
    _replace(sys.modules["gateway.main"], "UNAVAILABLE", ())


async def _ask_once(worker: Worker) -> None:
    await worker._redis.ping()


def hasty() -> None:
    """Wait for a reply for a moment only, so that a test need not last for seconds."""
    _replace(connections, "COMMAND_TIMEOUT_S", SHORT_TIMEOUT_S)


def deaf_worker() -> None:
    """Lose every hint to the worker: new work, cancels."""
    _replace(Bell, "listen", _forever)


def deaf_to_cancels() -> None:
    """Lose the hints, and let no append say that the job was cancelled."""
    deaf_worker()
    cut(job_store._APPEND, "if job[4] then return { 'CANCEL', next } end\n")


def of_tomorrow() -> None:
    """Write events with a field that today's version does not know."""

    def encode(event: events.Event) -> bytes:
        known = msgspec.to_builtins(event)
        return msgspec.msgpack.encode(known | {"of_tomorrow": {"7": [-0.5]}})

    for name, module in list(sys.modules.items()):
        if name.startswith(("common.", "worker.")) and hasattr(module, "encode_event"):
            _replace(module, "encode_event", encode)


def strict() -> None:
    """Refuse an event that has more fields than it should."""
    decode = events.decode_event

    def decode_strictly(payload: bytes) -> events.Event:
        event = decode(payload)
        unknown = msgspec.msgpack.decode(payload).keys() - msgspec.to_builtins(event).keys()
        if "of_tomorrow" in unknown:
            raise msgspec.ValidationError(f"unknown: {unknown}")
        return event

    for name, module in list(sys.modules.items()):
        if name.startswith(("common.", "gateway.")) and hasattr(module, "decode_event"):
            _replace(module, "decode_event", decode_strictly)


class ToxicEngine(FakeEngine):
    """A fake engine that a prompt can harm: ``[raise]``, ``[exit]``, ``[hang]``, ``[gil=3]``, …

    In mid-answer, and only in a job's first attempt, unless the prompt says ``[always]``.
    ``[prefill=3]`` is a prompt that takes three seconds to read.
    """

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request, and its poison."""
        prompt = request.spec.prompt or ""
        is_first = not any(emitted.ids for emitted in request.emitted)
        if seconds := _argument(prompt, "prefill"):
            asyncio.get_running_loop().call_later(seconds, super().submit, request, sink)
            return
        poisoned = is_first or "[always]" in prompt
        super().submit(request, _poisoned(prompt, sink) if poisoned else sink)


def _poisoned(prompt: str, sink: Sink) -> Sink:
    num_tokens = 0

    def take(output: Output) -> None:
        nonlocal num_tokens
        sink(output)
        num_tokens += isinstance(output, Delta) and bool(output.ids)
        if num_tokens == TOXIC_AT:
            num_tokens += 1
            _poison(prompt)

    return take


def _poison(prompt: str) -> None:
    if "[raise]" in prompt:
        raise ZeroDivisionError("a bug in the engine")
    if "[exit]" in prompt:
        sys.exit(9)
    if "[hang]" in prompt:
        while True:
            time.sleep(1)
    if seconds := _argument(prompt, "gil"):
        ctypes.PyDLL(None).sleep(int(seconds))  # not even another thread runs meanwhile
    if seconds := _argument(prompt, "loop"):
        time.sleep(seconds)


def _argument(prompt: str, name: str) -> float:
    _, found, rest = prompt.partition(f"[{name}=")
    return float(rest.partition("]")[0]) if found else 0.0


def toxic() -> None:
    """Run the engine that prompts can harm."""
    _replace(fake, "FakeEngine", ToxicEngine)


CHANGES: dict[str, Callable[[], None]] = {
    change.__name__: change
    for change in (
        deaf_to_cancels, deaf_worker, hasty, hoards, hurries, impatient, lease_in_loop,
        no_fence, no_hand_over, no_loop_watch, no_repeat_check, no_resync, no_second_sending,
        no_sweep, reckless,
        of_tomorrow, strict, toxic,
    )
}  # fmt: skip

if __name__ == "__main__":
    _, names, *arguments = sys.argv
    for given in filter(None, names.split(",")):
        CHANGES[given]()
    sys.argv = ["headrace", *arguments]
    main()
