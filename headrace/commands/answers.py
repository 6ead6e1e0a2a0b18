"""``run``, ``submit``, ``follow`` and ``cancel``: jobs and their answers."""

import asyncio
import json
import time
from contextlib import aclosing
from typing import Annotated

import msgspec
import typer

from common.events import Ended
from headrace.ask import Measured, cut, print_answer, require_completed, statistics
from headrace.asking import Asking, Drawing
from headrace.client import Client
from headrace.errors import ApiError, ClientError, JobNotCompleted
from headrace.flags import JobId, Json, PlainCommand, Url, unpacked
from headrace.printing import AnswerPrinter, SilentPrinter
from headrace.signals import StopSignals
from headrace.terminal import note, write, write_json
from headrace.views import JobRequest

app = typer.Typer(rich_markup_mode=None)

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", hidden=True)]


@app.command(cls=PlainCommand)
@unpacked
def run(
    asking: Asking,
    drawing: Drawing,
    prompt: Prompt = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast it was.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the job as JSON at its end.")] = False,
    url: Url = "",
) -> None:
    """Ask, and print the answer as it comes.

    PROMPT is what to ask; - reads standard input. Several answers come one after the other.
    Ctrl-C cancels the job.
    """
    request = asking.request(prompt, drawing)
    job_id, end, measured = asyncio.run(_run(url, request, asking.idempotency_key, json=json))
    if said := cut(end):
        note(said)
    if stats:
        note(statistics(end, measured))
    require_completed(job_id, end)


@app.command(cls=PlainCommand)
@unpacked
def submit(
    asking: Asking,
    drawing: Drawing,
    prompt: Prompt = None,
    url: Url = "",
) -> None:
    """Ask, and print the job's ID.

    PROMPT is what to ask; - reads standard input.
    """
    request = asking.request(prompt, drawing)

    async def send() -> str:
        async with Client(url) as client:
            job = await client.submit(request, idempotency_key=asking.idempotency_key)
            return job.id

    write(f"{asyncio.run(send())}\n")


@app.command(cls=PlainCommand)
def follow(
    job: JobId,
    after: Annotated[int, typer.Option(metavar="N", help="Begin after this event.")] = -1,
    json: Json = False,
    url: Url = "",
) -> None:
    """Print the answer of a job from its start.

    JOB is its ID. Ctrl-C leaves the job as it is.
    """
    asyncio.run(_follow_json(url, job, after) if json else _follow(url, job, after))


@app.command(cls=PlainCommand)
def cancel(job: JobId, url: Url = "") -> None:
    """Cancel a job.

    JOB is its ID.
    """

    async def send() -> str:
        async with Client(url) as client:
            return str(await client.cancel(job))

    note(asyncio.run(send()))


async def _run(
    url: str, request: JobRequest, idempotency_key: str, *, json: bool
) -> tuple[str, Ended, Measured]:
    """Submit and print; a signal or a closed pipe cancels the job."""
    printer = SilentPrinter() if json else AnswerPrinter(request.n or 1)
    async with Client(url) as client:
        began = time.monotonic()
        job = await client.submit(request, idempotency_key=idempotency_key)
        with StopSignals() as stop:
            try:
                end, measured = await print_answer(client, job.id, printer, began=began)
                if json:
                    write_json(msgspec.to_builtins(await client.get(job.id)))
            except asyncio.CancelledError:
                if not stop.received:
                    raise
                raise JobNotCompleted(await _cancelled(client, job.id)) from None
            except BrokenPipeError:
                await _cancelled(client, job.id)
                raise
            except ApiError:
                note(f"{job.id} was accepted, and goes on")  # a key may submit and not read
                raise
        return job.id, end, measured


async def _cancelled(client: Client, job_id: str) -> str:
    """Cancel the job; returns the line that says what became of it."""
    try:
        return str(await client.cancel(job_id))
    except ClientError as error:
        return f"could not cancel {job_id}: {error}"


async def _follow(url: str, job_id: str, after: int) -> None:
    async with Client(url) as client:
        job = await client.get(job_id)  # an unknown job is said at once, not after retries
        printer = AnswerPrinter(len(job.choices) or 1)
        with StopSignals() as stop:
            try:
                end, _ = await print_answer(client, job_id, printer, after=after)
            except asyncio.CancelledError:
                if not stop.received:
                    raise
                raise JobNotCompleted(
                    f"{job_id} goes on; cancel it with `headrace cancel {job_id}`"
                ) from None
    require_completed(job_id, end)


async def _follow_json(url: str, job_id: str, after: int) -> None:
    async with Client(url) as client:
        await client.get(job_id)
        async with aclosing(client.follow(job_id, after=after, notice=note)) as events:
            async for n, event in events:
                line = {"n": n, **msgspec.to_builtins(event)}
                write(json.dumps(line, ensure_ascii=False) + "\n")
                if isinstance(event, Ended):
                    require_completed(job_id, event)
