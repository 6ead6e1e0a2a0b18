"""The doctor's checks of Redis: each looks at one thing and says what to do."""

import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from common.connections import every_server
from common.dead_letters import DeadLetters, models_with_letters
from common.keys import Keys
from common.lanes import Lanes
from common.registry import Registry
from common.rights import missing_rights
from common.server import eviction_policy

OLDEST_REDIS = (7, 0)  # the lag of consumer groups
MOST_SKEW_S = 2.0


class Level(StrEnum):
    """How good it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """One finding; ``todo`` says what to do where it is not ``ok``."""

    name: str
    level: Level
    found: str
    todo: str = ""


RedisCheck = Callable[[Redis, Keys], Awaitable[Check]]


async def version(redis: Redis, _keys: Keys) -> Check:
    """Check that the server is new enough."""
    info = await redis.info("server")
    if "valkey_version" in info:
        return Check("server", Level.OK, f"Valkey {info['valkey_version']}")
    text = str(info["redis_version"])
    if tuple(int(part) for part in text.split(".")[:2]) >= OLDEST_REDIS:
        return Check("server", Level.OK, f"Redis {text}")
    return Check("server", Level.FAIL, f"Redis {text}", "use Redis 7.0 or newer, or Valkey")


async def eviction(redis: Redis, _keys: Keys) -> Check:
    """Check that the server never throws a job away."""
    policy = await eviction_policy(redis)
    if policy == "noeviction":
        return Check("eviction", Level.OK, policy)
    if policy is None:
        todo = "make sure that its maxmemory-policy is noeviction"
        return Check("eviction", Level.WARN, "the server does not say", todo)
    return Check("eviction", Level.FAIL, policy, "CONFIG SET maxmemory-policy noeviction")


async def durability(redis: Redis, _keys: Keys) -> Check:
    """Check that accepted jobs survive the server."""
    info = await redis.info("persistence")
    if not info.get("aof_enabled"):
        todo = "CONFIG SET appendonly yes; accepted jobs are lost when the server stops"
        return Check("AOF", Level.WARN, "off", todo)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Check("AOF", Level.FAIL, "its last write failed", "free the server's disk")
    return Check("AOF", Level.OK, f"on, fsync {await _fsync(redis)}")


async def clock(redis: Redis, _keys: Keys) -> Check:
    """Compare this machine's clock with the server's."""
    before = time.time()
    seconds, micros = await redis.time()
    skew_s = int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2
    found = f"{skew_s * 1000:+.0f} ms to this machine"
    if abs(skew_s) <= MOST_SKEW_S:
        return Check("clock", Level.OK, found)
    return Check("clock", Level.WARN, found, "run NTP; times in listings are off by this much")


async def lanes(redis: Redis, keys: Keys) -> Check:
    """Check that whatever waits has a worker to wait for."""
    registry = Registry(redis, keys)
    alive = {live.info.model for live in await registry.workers()}
    found, stuck = [], []
    for model in sorted(await registry.models()):
        depths = await Lanes(redis, keys, model).depths()
        waiting = sum(depth.waiting for depth in depths)
        found.append(f"{model}: {waiting} waiting, {sum(d.pending for d in depths)} held")
        if waiting and model not in alive:
            stuck.append(model)
    if stuck:
        todo = f"start a worker: headrace worker --model {stuck[0]}"
        return Check("lanes", Level.FAIL, "; ".join(found), todo)
    return Check("lanes", Level.OK, "; ".join(found) or "empty")


async def workers(redis: Redis, keys: Keys) -> Check:
    """Check that somebody works."""
    alive = [live.info for live in await Registry(redis, keys).workers()]
    if not alive:
        return Check("workers", Level.WARN, "none", "start one with `headrace worker`")
    found = ", ".join(f"{info.id} ({info.model}, {info.device or info.state})" for info in alive)
    return Check("workers", Level.OK, found)


async def dead_letters(redis: Redis, keys: Keys) -> Check:
    """Check that no job was given up."""
    places = [DeadLetters(redis, keys, model) for model in await models_with_letters(redis, keys)]
    num = sum([await place.count() for place in places])
    if not num:
        return Check("dead", Level.OK, "no job was given up")
    found = f"{num} {'job was' if num == 1 else 'jobs were'} given up"
    return Check("dead", Level.WARN, found, "see why with `headrace dead list`")


async def rights(redis: Redis, keys: Keys) -> Check:
    """Check that this user may do what Headrace does."""
    if missing := await missing_rights(redis, keys):
        todo = "give this user the rights in docs/redis.md"
        return Check("rights", Level.FAIL, f"lacks {', '.join(missing)}", todo)
    return Check("rights", Level.OK, "enough")


OF_EACH: tuple[RedisCheck, ...] = (version, eviction, durability, clock)
"""What is asked of every server of a cluster that takes writes."""

OF_ALL: tuple[RedisCheck, ...] = (rights, workers, lanes, dead_letters)


async def run_all(redis: Redis, keys: Keys) -> list[Check]:
    """Run every check; one that the server refuses is a warning."""
    servers = await every_server(redis)
    found = [_worst([await _run(check, server, keys) for server in servers]) for check in OF_EACH]
    return found + [await _run(check, redis, keys) for check in OF_ALL]


async def _run(check: RedisCheck, redis: Redis, keys: Keys) -> Check:
    try:
        return await check(redis, keys)
    except ResponseError as error:
        todo = "allow this user to ask, or check it by hand"
        return Check(check.__name__, Level.WARN, str(error), todo)
    except RedisError as error:
        return Check(check.__name__, Level.FAIL, str(error), "look at the server's log")


def _worst(found: list[Check]) -> Check:
    """Return the worst finding of several servers, with all that they say."""
    worst = max(found, key=lambda check: list(Level).index(check.level))
    said = "; ".join(dict.fromkeys(check.found for check in found))
    return msgspec.structs.replace(worst, found=said)


async def _fsync(redis: Redis) -> Any:
    try:
        return (await redis.config_get("appendfsync")).get("appendfsync", "unknown")
    except ResponseError:
        return "unknown"
