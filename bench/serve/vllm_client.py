"""``vllm bench serve`` as a process: the same client for both servers."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.engine.process import ROOT

PERCENTILES = "50,99"


class Measured(msgspec.Struct, frozen=True):
    """What the client found in one run. Latencies are milliseconds."""

    server: str
    round: int
    concurrency: int
    completed: int
    failed: int
    tokens_per_s: float
    requests_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    itl_p50: float
    itl_p99: float


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of one run."""

    prompts: Path  # JSONL
    count: int
    concurrency: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Server:
    """Where the client sends them."""

    name: str
    url: str
    backend: str
    endpoint: str
    model: str


class ClientFailed(Exception):
    """vLLM's client ended with an error; its last words."""


def write_prompts(path: Path, prompts: list[str]) -> None:
    """Write the prompts as vLLM's ``custom`` data set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


async def measure(
    python: str, server: Server, load: Load, tokenizer: Path, round_number: int
) -> Measured:
    """Run the client once."""
    result = load.prompts.with_suffix(f".{server.name}.json")
    result.unlink(missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", "bench.serve.launcher"),
        *_flags(server, load, tokenizer),
        *("--save-result", "--result-filename", str(result)),
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode or not result.is_file():
        raise ClientFailed(said.decode(errors="replace")[-2000:])
    return _measured(json.loads(result.read_text(encoding="utf-8")), server, load, round_number)


def _flags(server: Server, load: Load, tokenizer: Path) -> tuple[str, ...]:
    return (
        *("--backend", server.backend, "--base-url", server.url, "--endpoint", server.endpoint),
        *("--model", server.model, "--tokenizer", str(tokenizer)),
        *("--dataset-name", "custom", "--dataset-path", str(load.prompts)),
        *("--skip-chat-template", "--disable-shuffle", "--no-oversample"),
        *("--custom-output-len", str(load.max_tokens), "--num-prompts", str(load.count)),
        *("--max-concurrency", str(load.concurrency), "--request-rate", "inf"),
        *("--ignore-eos", "--extra-body", '{"temperature": 0}'),
        *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", PERCENTILES),
        *("--num-warmups", "2", "--disable-tqdm"),
    )


def _measured(found: dict[str, float], server: Server, load: Load, round_number: int) -> Measured:
    return Measured(
        server=server.name,
        round=round_number,
        concurrency=load.concurrency,
        completed=int(found["completed"]),
        failed=int(found.get("failed", load.count - found["completed"])),
        tokens_per_s=found["output_throughput"],
        requests_per_s=found["request_throughput"],
        ttft_p50=found["p50_ttft_ms"],
        ttft_p99=found["p99_ttft_ms"],
        tpot_p50=found["p50_tpot_ms"],
        tpot_p99=found["p99_tpot_ms"],
        itl_p50=found["p50_itl_ms"],
        itl_p99=found["p99_itl_ms"],
    )
