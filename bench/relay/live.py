"""One measurement of a live row: a fresh gateway, its subscribers, a stream of events."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import psutil

from bench.relay.analysis import (
    Subscription,
    Window,
    count_delivered,
    find_faults,
    latencies,
    percentile,
)
from bench.relay.appender import Done, Order
from bench.relay.jobs import enqueue, submit
from bench.relay.parsing import arrivals, published
from bench.relay.recording import Recorder, connect, listener, subscriber, until_silent
from bench.relay.rows import Door, LiveRow, Source
from bench.relay.stack import Running, Stack
from common.keys import Keys

WARM_UP_S = 1.0
MARGIN_S = 1.0  # the source goes on after the window
SPREAD_S = 2.0  # over which a worker's jobs begin


class Live(msgspec.Struct, frozen=True):
    """What one run of a live row measured. Latencies are milliseconds."""

    delivered_per_s: float
    gateway_us: float  # processor time of the gateway per delivered event
    kernel_us: float  # the kernel's part of it: mostly the write to each subscriber's socket
    gateway_load: float  # share of one core
    valkey_load: float
    clients_load: float  # all subscribers and the bare one, together
    total_p50: float | None
    total_p99: float | None
    floor_p50: float | None
    floor_p99: float | None
    added_p50: float | None
    added_p99: float | None
    stolen_ms: float  # of both cores, by the host; it explains stalls that nothing here caused
    source_late_ms: float | None  # the slowest flush was so far behind its rhythm
    num_faults: int
    faults: tuple[str, ...]  # the first ones


@dataclass(frozen=True, slots=True)
class _Usage:
    """The clock (ns) and the processor times (s) at one moment."""

    at_ns: int
    gateway: float
    kernel: float  # the gateway's time in the kernel
    valkey: float
    clients: float
    stolen: float


async def measure_live(row: LiveRow, stack: Stack, seconds: float) -> Live:
    """Run the row once."""
    job_ids = await submit(stack.redis, row.num_jobs)
    queued = await submit(stack.redis, row.num_waiting)
    async with stack.gateway() as gateway:
        bare = listener([Keys().job(job_id).live for job_id in job_ids])
        await connect(stack.valkey.port, [bare])
        readers = _readers(row, job_ids)
        waiting = [subscriber(Door.SSE, job_id) for job_id in queued]
        await connect(gateway.port, readers + waiting)
        async with _source(row, stack, job_ids, seconds) as done:
            await asyncio.sleep(WARM_UP_S)
            before = _usage(stack, gateway)
            await asyncio.sleep(seconds)
            after = _usage(stack, gateway)
        await until_silent([bare, *readers])
        for recorder in (bare, *readers, *waiting):
            recorder.transport.abort()
    late_ms = done.result().late_ms if row.source is Source.APPENDER else None
    return _figures(_subscriptions(row, job_ids, readers, bare), before, after, late_ms)


def _readers(row: LiveRow, job_ids: list[str]) -> list[Recorder]:
    return [
        subscriber(row.door, job_ids[number % len(job_ids)])
        for number in range(row.num_subscribers)
    ]


@asynccontextmanager
async def _source(
    row: LiveRow, stack: Stack, job_ids: list[str], seconds: float
) -> AsyncIterator["asyncio.Future[Done]"]:
    """Let events flow in the block; the appender finishes after it."""
    done = asyncio.get_running_loop().create_future()
    if row.source is Source.WORKER:
        async with stack.worker(row.num_jobs, row.appends_per_s / row.num_jobs):
            await enqueue(stack.redis, job_ids, SPREAD_S)
            yield done
        return
    total_s = WARM_UP_S + seconds + MARGIN_S
    order = Order(stack.url, tuple(job_ids), row.appends_per_s, total_s, row.num_workers)
    process = await _start_appender(order, stack.cores.others)
    try:
        yield done
        answer, _ = await process.communicate()
        done.set_result(msgspec.json.decode(answer, type=Done))
    finally:
        if process.returncode is None:
            process.kill()


async def _start_appender(order: Order, cores: frozenset[int]) -> asyncio.subprocess.Process:
    """Return the appender once it has started the jobs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.relay.appender"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    os.sched_setaffinity(process.pid, cores)
    assert process.stdin
    assert process.stdout
    process.stdin.write(msgspec.json.encode(order))
    process.stdin.write_eof()
    await process.stdout.readline()
    return process


def _usage(stack: Stack, gateway: Running) -> _Usage:
    return _Usage(
        at_ns=time.monotonic_ns(),
        gateway=gateway.cpu_s,
        kernel=gateway.system_s,
        valkey=stack.valkey.cpu_s,
        clients=time.process_time(),
        stolen=psutil.cpu_times().steal,
    )


def _subscriptions(
    row: LiveRow, job_ids: list[str], readers: list[Recorder], bare: Recorder
) -> list[Subscription]:
    logs = published(bare.chunks, Keys())
    return [
        Subscription(logs[job_ids[number % len(job_ids)]], arrivals(row.door, reader.chunks))
        for number, reader in enumerate(readers)
    ]


def _figures(
    subscriptions: list[Subscription], before: _Usage, after: _Usage, late_ms: float | None
) -> Live:
    window = Window(before.at_ns, after.at_ns)
    seconds = (window.end - window.begin) / 1e9
    delivered = count_delivered(subscriptions, window) or 1
    ages = latencies(subscriptions, window)
    faults = find_faults(subscriptions)
    gateway_s = after.gateway - before.gateway
    return Live(
        delivered_per_s=delivered / seconds,
        gateway_us=gateway_s / delivered * 1e6,
        kernel_us=(after.kernel - before.kernel) / delivered * 1e6,
        gateway_load=gateway_s / seconds,
        valkey_load=(after.valkey - before.valkey) / seconds,
        clients_load=(after.clients - before.clients) / seconds,
        total_p50=percentile(ages.total, 50),
        total_p99=percentile(ages.total, 99),
        floor_p50=percentile(ages.floor, 50),
        floor_p99=percentile(ages.floor, 99),
        added_p50=percentile(ages.added, 50),
        added_p99=percentile(ages.added, 99),
        stolen_ms=(after.stolen - before.stolen) * 1000,
        source_late_ms=late_ms,
        num_faults=len(faults),
        faults=tuple(faults[:5]),
    )
