"""``up`` and ``demo``: the local stack in the foreground."""

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import typer

from common.jobs import Message
from common.registry import LiveWorker, WorkerInfo
from common.settings import Settings, load, origins
from headrace.addresses import masked
from headrace.ask import print_answer, require_completed, statistics
from headrace.client import Client
from headrace.default_gateway import default_url, usual_data_dir
from headrace.flags import DemoFlags, StackFlags, given, unpacked
from headrace.signals import StopSignals
from headrace.stack import DRAIN_S, Stack, local_stack
from headrace.terminal import note, progress
from headrace.views import JobRequest

app = typer.Typer(rich_markup_mode=None)

QUESTION = "Why do rivers meander?"
_DEMO = JobRequest(messages=(Message("user", QUESTION),), max_tokens=80, temperature=0)
_STOPPING = f"Stopping: jobs that are not done in {DRAIN_S:g} s go on with the next start"


@app.command()
@unpacked
def up(flags: StackFlags) -> None:
    """Start everything on this machine.

    A Valkey server, a gateway and workers, in the foreground; Ctrl-C stops them. What crashes is
    started again. With --redis (or HEADRACE_REDIS) that server is used instead of an own one.
    """
    settings = load(given(flags))
    asyncio.run(_up(settings, own_server=_wants_server(flags)))


@app.command()
@unpacked
def demo(flags: DemoFlags) -> None:
    """Start everything, stream one answer, stop everything.

    Uses a free port and a temporary data directory unless told otherwise.
    """
    folder = tempfile.mkdtemp(prefix="headrace-demo-")
    values = {"port": 0, "data_dir": Path(folder)} | given(flags)
    asyncio.run(_demo(load(values), own_server=_wants_server(flags)))
    shutil.rmtree(folder)  # not after an error: the logs say why


def _wants_server(flags: StackFlags) -> bool:
    return origins(given(flags))["redis"] == "default"


async def _up(settings: Settings, *, own_server: bool) -> None:
    async def wait(stack: Stack, workers: list[LiveWorker]) -> None:
        note(_banner(stack, workers, own_server=own_server))
        await asyncio.Event().wait()  # until a signal comes

    await _with_stack(settings, wait, own_server=own_server)
    note("Stopped")


async def _demo(settings: Settings, *, own_server: bool) -> None:
    async def ask(stack: Stack, _workers: list[LiveWorker]) -> None:
        note(f"\n> {QUESTION}\n")
        async with Client(stack.url) as client:
            began = time.monotonic()
            job = await client.submit(_DEMO)
            end, measured = await print_answer(client, job.id, began=began)
        note(f"\n{statistics(end, measured)}")
        require_completed(job.id, end)
        note(_next_steps())

    await _with_stack(settings, ask, own_server=own_server)


async def _with_stack(
    settings: Settings,
    use: Callable[[Stack, list[LiveWorker]], Awaitable[None]],
    *,
    own_server: bool,
) -> None:
    """Use a stack that takes jobs. A signal is a good end, at any moment."""
    with StopSignals(lambda: note(_STOPPING)) as stop:
        try:
            async with local_stack(settings, note, own_server=own_server) as stack:
                stop.force = stack.kill
                with progress("Starting") as show:
                    workers = await stack.ready(show)
                await use(stack, workers)
        except asyncio.CancelledError:
            if not stop.received:
                raise


def _banner(stack: Stack, workers: list[LiveWorker], *, own_server: bool) -> str:
    server = "embedded Valkey" if own_server else masked(stack.settings.redis)
    url = "" if stack.url == default_url() else f" --url {stack.url}"
    lines = [
        f"Headrace is ready at {stack.url}",
        "",
        *(f"  worker   {_described(live.info)}" for live in workers),
        f"  redis    {server}",
        f"  data     {stack.data_dir.path}",
        f"  logs     {stack.data_dir.logs}",
        "",
        "Try, in another terminal:",
        f"  headrace run{url} {shlex.quote(QUESTION)}",
        f"  headrace ps{url}",
        *_elsewhere(stack),
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def _elsewhere(stack: Stack) -> list[str]:
    """Return how commands find a stack that is not in the usual data directory."""
    if stack.data_dir.path == usual_data_dir().resolve():
        return []
    path = shlex.quote(str(stack.data_dir.path))
    return ["", "Other commands find this stack after:", f"  export HEADRACE_DATA_DIR={path}"]


def _next_steps() -> str:
    steps = [
        ("headrace up --workers 2", "a stack that stays"),
        (f"headrace run {shlex.quote(QUESTION)}", "ask it, from another terminal"),
        ("headrace submit 'Name three rivers.'", "prints a job ID and leaves"),
        ("headrace follow JOB", "reads the answer, as often as you like"),
        ("headrace ps", "the workers; kill -9 one, and see the answer go on"),
    ]
    if shutil.which("headrace") is None:  # make's environment is not the user's
        steps.insert(0, (f"source {shlex.quote(sys.prefix + '/bin/activate')}", "first"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:{width}}  {purpose}" for command, purpose in steps]
    return "\n".join(["", "That was a whole stack; it is stopped. Try next:", "", *lines])


def _described(info: WorkerInfo) -> str:
    dtype = f" ({info.dtype})" if info.dtype else ""
    return f"{info.model} on {info.device}{dtype}, {info.capacity} jobs at once"
