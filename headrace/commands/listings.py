"""``jobs`` and ``ps``: what there is."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from common.jobs import JobState
from headrace.client import Client
from headrace.flags import Json, Url
from headrace.terminal import age, note, size, write_json, write_table
from headrace.views import Job, KvCache, Worker

app = typer.Typer(rich_markup_mode=None)

_PAGE = 100


@app.command()
def jobs(
    status: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 20,
    json: Json = False,
    url: Url = "",
) -> None:
    """List the jobs, the newest first."""
    found = asyncio.run(_jobs(url, status, limit))
    if json:
        write_json(msgspec.to_builtins(found))
        return
    now = datetime.now(UTC)
    header = ("ID", "STATUS", "MODEL", "PRIORITY", "TOKENS", "AGE")
    write_table(header, [_job_row(job, now) for job in found])


@app.command()
def ps(json: Json = False, url: Url = "") -> None:
    """List the workers that live."""
    workers = asyncio.run(_workers(url))
    if json:
        write_json(msgspec.to_builtins(workers))
        return
    if not workers:
        note("no worker lives; start one with `headrace worker`")
    header = ("ID", "MODEL", "DEVICE", "STATE", "LOAD", "TOK/S", "KV", "HITS", "TIERS", "SEEN")
    write_table(header, [_worker_row(worker) for worker in workers])


async def _jobs(url: str, status: JobState | None, limit: int) -> list[Job]:
    """Return up to ``limit`` jobs, page by page."""
    found: list[Job] = []
    cursor = ""
    async with Client(url) as client:
        while len(found) < limit:
            wanted = min(limit - len(found), _PAGE)
            page = await client.jobs(status=status, limit=wanted, cursor=cursor)
            found += page.data
            cursor = page.next_cursor or ""
            if not cursor:
                break
    return found[:limit]


async def _workers(url: str) -> tuple[Worker, ...]:
    async with Client(url) as client:
        return await client.workers()


def _job_row(job: Job, now: datetime) -> tuple[str, ...]:
    tokens = str(job.usage.completion_tokens) if job.usage else "-"
    created = age((now - job.created_at).total_seconds()) if job.created_at else "-"
    return job.id, job.status.value, job.model, job.priority.value, tokens, created


def _worker_row(worker: Worker) -> tuple[str, ...]:
    return (
        worker.id,
        worker.model,
        worker.device or "-",
        f"{worker.state} {worker.progress}".strip(),
        f"{worker.running}/{worker.capacity}",
        f"{worker.tokens_per_s:.1f}",
        *_kv_cells(worker.kv),
        f"{worker.lease_age_s:.1f}s ago",
    )


def _kv_cells(kv: KvCache | None) -> tuple[str, str, str]:
    """Return used/total blocks, the hit rate, and the bytes on the device, the host, the disk."""
    if kv is None:
        return "-", "-", "-"
    tiers = (kv.device_bytes, kv.host_bytes, kv.disk_bytes)
    return f"{kv.blocks_used}/{kv.blocks}", f"{kv.hit_rate:.0%}", "/".join(map(size, tiers))
