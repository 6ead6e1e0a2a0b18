"""``jobs`` and ``ps``."""

import json
from collections.abc import Callable

from typer.testing import Result

from tests.headrace.fake_gateway import JOB, fake_gateway_in_thread, json_reply

Headrace = Callable[..., Result]

JOB_ROW = {
    "id": JOB,
    "status": "completed",
    "model": "m",
    "priority": "high",
    "created_at": "2026-01-02T03:04:05.678Z",
    "usage": {"prompt_tokens": 1, "completion_tokens": 42, "cached_tokens": 0},
}
WORKER_ROW = {
    "id": "w1",
    "model": "m",
    "device": "cpu",
    "state": "loading",
    "progress": "reading 40%",
    "capacity": 4,
    "running": 3,
    "tokens_per_s": 12.34,
    "lease_age_s": 1.26,
}
KV = {
    "block_tokens": 16,
    "blocks": 256,
    "blocks_used": 12,
    "query_tokens": 200,
    "hit_tokens": 150,
    "device_bytes": 3 * 1024**2,
    "host_bytes": 1536 * 1024**2,
    "disk_bytes": 0,
}


def test_jobs_is_a_table(headrace: Headrace) -> None:
    """Columns are aligned, and nothing decorates them."""
    with fake_gateway_in_thread(json_reply({"data": [JOB_ROW], "next_cursor": None})) as gateway:
        result = headrace("jobs", "--status", "completed", url=gateway.url)
    header, row = result.output.splitlines()
    assert header.split() == ["ID", "STATUS", "MODEL", "PRIORITY", "TOKENS", "AGE"]
    assert row.split()[:5] == [JOB, "completed", "m", "high", "42"]
    assert header.index("STATUS") == row.index("completed")
    assert "status=completed" in gateway.requests[0]


def test_jobs_reads_page_after_page(headrace: Headrace) -> None:
    """The limit is the user's, the pages are the gateway's."""
    pages = [json_reply({"data": [JOB_ROW] * 100, "next_cursor": str(n)}) for n in (1, 2)]
    with fake_gateway_in_thread(*pages) as gateway:
        result = headrace("jobs", "--limit", "150", "--json", url=gateway.url)
    assert len(json.loads(result.output)) == 150
    assert "limit=100" in gateway.requests[0]
    assert "limit=50" in gateway.requests[1]
    assert "cursor=1" in gateway.requests[1]


def test_ps_is_a_table(headrace: Headrace) -> None:
    """Load, speed and the last sign of life are there."""
    with fake_gateway_in_thread(json_reply({"data": [WORKER_ROW]})) as gateway:
        result = headrace("ps", url=gateway.url)
    header, row = result.output.splitlines()
    names = ["ID", "MODEL", "DEVICE", "STATE", "LOAD", "TOK/S", "KV", "HITS", "TIERS", "SEEN"]
    assert header.split() == names
    assert row.split() == [
        "w1",
        "m",
        "cpu",
        "loading",
        "reading",
        "40%",
        "3/4",
        "12.3",
        "-",
        "-",
        "-",
        "1.3s",
        "ago",
    ]


def test_ps_shows_the_kv_cache(headrace: Headrace) -> None:
    """Used and all blocks, the hit rate, and the bytes on the device, in host memory, on disk."""
    row = WORKER_ROW | {"kv": KV}
    with fake_gateway_in_thread(json_reply({"data": [row]})) as gateway:
        result = headrace("ps", url=gateway.url)
        as_json = headrace("ps", "--json", url=gateway.url)
    assert result.output.splitlines()[1].split()[8:11] == ["12/256", "75%", "3.0M/1.5G/0"]
    [shown] = json.loads(as_json.output)
    assert shown["kv"]["blocks"] == 256


def test_ps_without_workers_says_what_to_do(headrace: Headrace) -> None:
    """An empty table alone would leave people guessing."""
    with fake_gateway_in_thread(json_reply({"data": []})) as gateway:
        result = headrace("ps", url=gateway.url)
    assert result.stdout.startswith("ID ")
    assert result.stderr == "no worker lives; start one with `headrace worker`\n"


def test_ps_json_is_for_programs(headrace: Headrace) -> None:
    """The fields keep their names."""
    with fake_gateway_in_thread(json_reply({"data": [WORKER_ROW]})) as gateway:
        result = headrace("ps", "--json", url=gateway.url)
    assert WORKER_ROW.items() <= json.loads(result.output)[0].items()
