"""``run``, ``submit``, ``follow`` and ``cancel``: jobs and their answers."""

import asyncio
import json
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer

from common.events import Ended
from common.jobs import FinishReason, Message, Priority
from headrace.ask import Measured, print_answer, require_completed, statistics
from headrace.client import Client
from headrace.errors import ClientError, JobNotCompleted
from headrace.flags import JobId, Json, PlainCommand, Url, unpacked
from headrace.signals import StopSignals
from headrace.terminal import note, write
from headrace.views import JobRequest

app = typer.Typer(rich_markup_mode=None)

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", hidden=True)]


@dataclass(frozen=True, slots=True)
class Asking:
    """The options of a question."""

    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model; default: the gateway's.")
    ] = None
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message before the prompt.")
    ] = None
    raw: Annotated[bool, typer.Option("--raw", help="Send the prompt without chat template.")] = (
        False
    )
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Longest answer; default: the gateway's 256.")
    ] = None
    temperature: Annotated[
        float, typer.Option(metavar="NUMBER", help="Randomness; 0 = always the likeliest token.")
    ] = 0.6  # the API's own default is 1, which small models do not bear
    top_p: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Sample from this much probability.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Sample from this many tokens, 0 = all.")
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the random numbers.")] = (
        None
    )
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End here; can be repeated.")
    ] = None
    priority: Annotated[Priority | None, typer.Option(help="Lane to wait in.")] = None
    deadline_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up after this time.")
    ] = None
    prompt_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Kept with the job; reuse of KV tensors by prompt ID is not there yet.",
        ),
    ] = None

    def request(self, prompt: str) -> JobRequest:
        """Return the job that asks ``prompt`` with these options."""
        text = _standard_input() if prompt == "-" else prompt
        if not text.strip():
            raise typer.BadParameter("the prompt is empty")
        if self.raw and self.system is not None:
            raise typer.BadParameter("--system needs the chat template; leave --raw out")
        turns = [("system", self.system)] if self.system is not None else []
        messages = tuple(Message(role, said) for role, said in [*turns, ("user", text)])
        return JobRequest(
            model=self.model,
            prompt=text if self.raw else None,
            messages=None if self.raw else messages,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            priority=self.priority,
            deadline_s=self.deadline_s,
            prompt_id=self.prompt_id,
        )


@app.command(cls=PlainCommand)
@unpacked
def run(
    prompt: Prompt,
    asking: Asking,
    stats: Annotated[bool, typer.Option("--stats", help="Say how fast it was.")] = False,
    url: Url = "",
) -> None:
    """Ask, and print the answer as it comes.

    PROMPT is what to ask; - reads standard input. Ctrl-C cancels the job.
    """
    job_id, end, measured = asyncio.run(_run(url, asking.request(prompt)))
    if end.finish_reason is FinishReason.LENGTH:
        note(f"[cut at {end.usage.completion_tokens} tokens; --max-tokens allows more]")
    if stats:
        note(statistics(end, measured))
    require_completed(job_id, end)


@app.command(cls=PlainCommand)
@unpacked
def submit(
    prompt: Prompt,
    asking: Asking,
    idempotency_key: Annotated[
        str,
        typer.Option(metavar="KEY", help="The same key gives the same job.", show_default=False),
    ] = "",
    url: Url = "",
) -> None:
    """Ask, and print the job's ID.

    PROMPT is what to ask; - reads standard input.
    """
    request = asking.request(prompt)

    async def send() -> str:
        async with Client(url) as client:
            return (await client.submit(request, idempotency_key=idempotency_key)).id

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


def _standard_input() -> str:
    try:
        text = sys.stdin.read()
        text.encode()
    except UnicodeError:
        raise typer.BadParameter("standard input is not UTF-8 text") from None
    return text


async def _run(url: str, request: JobRequest) -> tuple[str, Ended, Measured]:
    """Submit and print; a signal or a closed pipe cancels the job."""
    async with Client(url) as client:
        began = time.monotonic()
        job = await client.submit(request)
        with StopSignals() as stop:
            try:
                end, measured = await print_answer(client, job.id, began=began)
            except asyncio.CancelledError:
                if not stop.received:
                    raise
                raise JobNotCompleted(await _cancelled(client, job.id)) from None
            except BrokenPipeError:
                await _cancelled(client, job.id)
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
        await client.get(job_id)  # an unknown job or gateway is said at once, not after retries
        with StopSignals() as stop:
            try:
                end, _ = await print_answer(client, job_id, after=after)
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
