"""``python -m bench.doorbell``: what a pub/sub message costs, by each way to read it.

The gateway's doorbell reads with ``Connection.read_response``; ``PubSub`` is the usual way. All get
the same messages at the same rate, in turns; the processor time of this process is divided by the
number of messages. Nothing is done with them.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
import uvloop
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from bench.relay.stack import choose_cores, running_stack
from common.connections import command_client, pubsub_client
from common.events import Tokens, encode_event

CHANNEL = "bench:live"
TICK_S = 0.004
SETTLE_S = 0.3
PUBLISH = "--publish"

_PAYLOAD = b"0123abcd:17:" + encode_event(Tokens(17, (1867,), " river"))

Read = Callable[[Redis, int], Awaitable[None]]


async def by_connection(client: Redis, count: int) -> None:
    """Read as ``gateway/doorbell.py`` does."""
    connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    await connection.connect()
    await connection.send_command("SUBSCRIBE", CHANNEL, check_health=False)
    for _ in range(count + 1):  # the first is the confirmation
        await connection.read_response(disable_decoding=True)
    await connection.disconnect()


async def by_get_message(client: Redis, count: int) -> None:
    """Read with ``PubSub.get_message`` and a timeout, as a loop that must also do other things."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        while count:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
            count -= message is not None


async def by_listen(client: Redis, count: int) -> None:
    """Read with ``PubSub.listen``."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        async for message in pubsub.listen():
            count -= message["type"] == "message"
            if not count:
                return


WAYS: dict[str, Read] = {
    "Connection.read_response": by_connection,
    "PubSub.listen": by_listen,
    "PubSub.get_message": by_get_message,
}


async def publish(url: str, count: int, rate: float) -> None:
    """Publish at the rate, in small bursts, as workers do."""
    client = command_client(url)
    begin = time.monotonic()
    sent = 0
    while sent < count:
        due = min(count, int((time.monotonic() - begin) * rate))
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(due - sent):
                pipeline.publish(CHANNEL, _PAYLOAD)
            await pipeline.execute()
        sent = due
        await asyncio.sleep(TICK_S)
    await client.aclose()


async def measure(url: str, read: Read, count: int, rate: float) -> float:
    """Return the microseconds of this process per message."""
    client = pubsub_client(url)
    before = time.process_time()
    reading = asyncio.ensure_future(read(client, count))
    await asyncio.sleep(SETTLE_S)
    publisher = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.doorbell", PUBLISH, url, str(count), str(rate)
    )
    await reading
    used = time.process_time() - before
    await publisher.wait()
    await client.aclose()
    return used / count * 1e6


async def measure_all(runs: int, count: int, rate: float) -> dict[str, list[float]]:
    """Return every way's figures; the ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    async with running_stack(choose_cores(pinned=False)) as stack:
        for run in range(runs):
            for name, read in WAYS.items():
                Console(stderr=True).print(f"run {run + 1}/{runs}: {name}", highlight=False)
                found[name].append(await measure(stack.url, read, count, rate))
    return found


def main(
    runs: Annotated[int, typer.Option(help="Runs of each way.")] = 5,
    count: Annotated[int, typer.Option(help="Messages per run.")] = 20_000,
    rate: Annotated[float, typer.Option(help="Messages per second.")] = 5_000,
) -> None:
    """Compare the ways to read pub/sub messages."""
    found = uvloop.run(measure_all(runs, count, rate))
    table = Table("way", "µs per message, median", "every run")
    for name, figures in found.items():
        every = " ".join(f"{figure:.1f}" for figure in figures)
        table.add_row(name, f"{statistics.median(figures):.1f}", every)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == [PUBLISH]:
        uvloop.run(publish(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    else:
        typer.run(main)
