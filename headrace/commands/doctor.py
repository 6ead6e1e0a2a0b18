"""``doctor``: is everything as it should be, and what to do where not."""

import asyncio
import subprocess

import msgspec
import typer
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from common.connections import command_client
from common.keys import Keys
from common.settings import Settings, load
from headrace import checks
from headrace.addresses import lacks_password, masked
from headrace.checks import Check, Level
from headrace.client import Client
from headrace.default_server import default_server
from headrace.errors import ClientError, Unreachable
from headrace.flags import Json, RedisUrl, Url
from headrace.terminal import write, write_json

app = typer.Typer(rich_markup_mode=None)

_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_GPU_TIMEOUT_S = 10


@app.command()
def doctor(json: Json = False, url: Url = "", redis: RedisUrl = "") -> None:
    """Check Redis, the gateway, the workers and this machine.

    Ends with 1 when something must be repaired. Warnings can be lived with.
    """
    found = asyncio.run(_examine(load(), url, redis))
    if json:
        write_json(msgspec.to_builtins(found))
    else:
        for check in found:
            write(_lines(check))
    if any(check.level is Level.FAIL for check in found):
        raise typer.Exit(1)


async def _examine(settings: Settings, url: str, redis: str) -> list[Check]:
    found = await _redis(redis or default_server(settings), Keys(settings.key_prefix))
    return [*found, await _gateway(url), _gpu(settings.device)]


async def _redis(server: str, keys: Keys) -> list[Check]:
    if lacks_password(server):
        found = f"{server}: the running stack's server, its password is not kept"
        return [Check("redis", Level.FAIL, found, "name that server with --redis")]
    redis = command_client(server, max_connections=1)
    try:
        reachable = await _reachable(redis, server)
        if reachable.level is not Level.OK:
            return [reachable]
        return [reachable, *await checks.run_all(redis, keys)]
    finally:
        await redis.aclose()


async def _reachable(redis: Redis, url: str) -> Check:
    try:
        await redis.ping()
    except NoPermissionError:
        pass  # it answers, and the check of the rights names what is missing
    except (RedisError, OSError) as error:
        todo = "start one with `headrace up`, or name yours with --redis"
        return Check("redis", Level.FAIL, f"{masked(url)}: {error}", todo)
    return Check("redis", Level.OK, masked(url))


async def _gateway(url: str) -> Check:
    try:
        async with Client(url) as client:
            readiness = await client.readiness()
    except Unreachable as error:
        found = f"no gateway answers at {url} ({error.reason})"
        todo = "start one with `headrace up`, or name yours with --url"
        return Check("gateway", Level.FAIL, found, todo)
    except ClientError as error:
        return Check("gateway", Level.FAIL, str(error), "name a gateway with --url")
    if readiness.is_ready:
        return Check("gateway", Level.OK, f"{url} is ready")
    missing = ", ".join(name for name, is_there in readiness.checks.items() if not is_there)
    found = f"{url} is {readiness.status.replace('_', ' ')}, lacks: {missing or 'nothing'}"
    return Check("gateway", Level.FAIL, found, "jobs wait or are refused until that is there")


def _gpu(wanted: str) -> Check:
    try:
        answer = subprocess.run(
            _GPU_QUERY, capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True
        )
    except FileNotFoundError:
        found = ""
    except subprocess.SubprocessError as error:
        return Check("GPU", Level.WARN, f"nvidia-smi: {error}", "look at the driver")
    else:
        found = "; ".join(answer.stdout.strip().splitlines())
    if found or wanted != "cuda":
        return Check("GPU", Level.OK, found or "none; the model runs on the CPU")
    return Check("GPU", Level.FAIL, "none", "the setting device is cuda; set it to auto or cpu")


def _lines(check: Check) -> str:
    first = f"{check.level:<5} {check.name:<9} {check.found}\n"
    return first + (f"{'':<16}→ {check.todo}\n" if check.todo else "")
