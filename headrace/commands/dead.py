"""``dead list``, ``retry`` and ``drop``: jobs that were given up, by who can reach Redis."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import msgspec
import typer
from redis.asyncio import Redis

from common.dead_letters import DeadLetters, Filed, Letter
from common.errors import HeadraceError
from common.events import Started
from common.keys import Keys
from headrace.dead import Dead
from headrace.flags import Json, PlainCommand, RedisUrl
from headrace.redis_command import with_redis
from headrace.terminal import note, write, write_json, write_table

app = typer.Typer(rich_markup_mode=None)
_dead = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_dead, name="dead", help="List, retry and drop jobs that were given up.")

Result = TypeVar("Result")
Jobs = Annotated[list[str] | None, typer.Argument(metavar="JOB...", hidden=True)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Model = Annotated[str, typer.Option(metavar="MODEL", help="Its model. [default: all models]")]


@_dead.callback()
def dead() -> None:
    """List, retry and drop jobs that cost too many workers, or that nobody could read."""


@_dead.command("list", cls=PlainCommand)
def list_dead(model: Model = "", json: Json = False, redis: RedisUrl = "") -> None:
    """List them, the oldest first; --json has their history."""
    found = _with_dead(redis, model, Dead.all)
    if json:
        write_json([_entry(place, filed) for place, filed in found])
        return
    header = ("JOB", "MODEL", "TENANT", "SINCE", "ATTEMPTS", "TOKENS", "WHY")
    rows = [
        (
            filed.letter.job,
            place.model,
            filed.letter.tenant or "-",
            _date(filed.at_ms),
            str(filed.letter.attempts),
            str(filed.letter.num_tokens),
            filed.letter.error.type,
        )
        for place, filed in found
    ]
    write_table(header, rows)


@_dead.command(cls=PlainCommand)
def retry(
    jobs: Jobs = None, every: All = False, model: Model = "", json: Json = False,
    redis: RedisUrl = "",
) -> None:  # fmt: skip
    """Submit JOB... anew, under new IDs, and drop their letters."""
    wanted = _wanted(jobs, every=every)

    async def do(dead: Dead) -> list[tuple[str, str | None]]:
        found = await dead.named(wanted)
        return [(filed.letter.job, await dead.retry(place, filed)) for place, filed in found]

    retried = _with_dead(redis, model, do)
    if json:
        write_json([{"job": old, "new_job": new} for old, new in retried])
        return
    if not retried:
        note("there is nothing to retry")
    for old, new in retried:
        if new is None:
            note(f"{old} cannot be read, so it cannot be retried; `headrace dead drop {old}`")
        else:
            write(f"{new}\n")


@_dead.command(cls=PlainCommand)
def drop(
    jobs: Jobs = None, every: All = False, model: Model = "", json: Json = False,
    redis: RedisUrl = "",
) -> None:  # fmt: skip
    """Drop the letters of JOB...; the jobs have their end already."""
    wanted = _wanted(jobs, every=every)

    async def do(dead: Dead) -> list[str]:
        found = await dead.named(wanted)
        return [filed.letter.job for place, filed in found if await place.drop(filed.entry)]

    dropped = _with_dead(redis, model, do)
    if json:
        write_json([{"job": job, "dropped": True} for job in dropped])
    else:
        note(f"{len(dropped)} dropped")


def _wanted(jobs: list[str] | None, *, every: bool) -> list[str] | None:
    """Return the jobs that are meant, None for all."""
    if every == bool(jobs):
        raise typer.BadParameter("name jobs, or say --all")
    return None if every else jobs


def _with_dead(redis: str, model: str, do: Callable[[Dead], Awaitable[Result]]) -> Result:
    async def run(client: Redis, keys: Keys) -> Result:
        try:
            return await do(Dead(client, keys, model))
        except msgspec.MsgspecError as error:
            raise HeadraceError("a letter is of another version: upgrade this one") from error

    return with_redis(redis, run)


def _entry(place: DeadLetters, filed: Filed) -> dict[str, object]:
    letter: Letter = filed.letter
    return {
        "job": letter.job,
        "model": place.model,
        "tenant": letter.tenant,
        "at": _date(filed.at_ms),
        "error": msgspec.to_builtins(letter.error),
        "attempts": letter.attempts,
        "tokens": letter.num_tokens,
        "workers": [event.worker for event in letter.history if isinstance(event, Started)],
        "history": msgspec.to_builtins(letter.history),
        "job_spec": msgspec.to_builtins(letter.spec),
    }


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
