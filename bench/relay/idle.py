"""One measurement of an idle row: what a gateway keeps for subscribers that wait."""

import asyncio

import msgspec

from bench.relay.jobs import submit
from bench.relay.recording import connect, subscriber
from bench.relay.rows import IdleRow
from bench.relay.stack import Stack

SETTLE_S = 6.0  # past the first ping, and two comparisons with the log
FIRST = 10  # subscribers that come and go before: what is loaded once is not theirs


class Idle(msgspec.Struct, frozen=True):
    """What one run of an idle row measured. Sizes are KB of 1,024 bytes."""

    gateway_kb: float  # resident, without subscribers
    subscriber_kb: float  # resident growth per subscriber
    gateway_load: float  # share of one core, for pings and comparisons


async def measure_idle(row: IdleRow, stack: Stack) -> Idle:
    """Run the row once."""
    job_ids = await submit(stack.redis, row.num_jobs)
    async with stack.gateway() as gateway:

        async def attach(count: int) -> list[asyncio.Transport]:
            chosen = [job_ids[number % len(job_ids)] for number in range(count)]
            readers = [subscriber(row.door, job_id) for job_id in chosen]
            await connect(gateway.port, readers)
            return [reader.transport for reader in readers]

        for transport in await attach(FIRST):
            transport.abort()
        await asyncio.sleep(1)
        alone = gateway.resident
        transports = await attach(row.num_subscribers)
        used_s = gateway.cpu_s
        await asyncio.sleep(SETTLE_S)
        used_s = gateway.cpu_s - used_s
        together = gateway.resident
        for transport in transports:
            transport.abort()
    return Idle(
        gateway_kb=alone / 1024,
        subscriber_kb=(together - alone) / 1024 / row.num_subscribers,
        gateway_load=used_s / SETTLE_S,
    )
