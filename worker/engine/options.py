"""What an engine needs to know to load its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineKind = Literal["local", "remote", "vllm", "fake"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["auto", "none", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of every kind of engine.

    ``model`` is a known name, a Hugging Face ID, a directory or a GGUF file; for the fake engine
    any name. ``capacity`` bounds the requests that run at once, ``threads`` the CPU threads (0:
    torch's choice). ``step_tokens`` bounds the tokens of one forward pass. The ``kv_…_bytes``
    bound the tiers of the KV cache (``kv_bytes`` 0: a share of the free memory; the others 0:
    off). An engine without progress for ``watchdog_s`` seconds is ended. ``upstream`` and its key
    belong to the remote engine. ``fake_tokens_per_s`` is per request; 0 is as fast as possible.
    """

    model: str
    cache_dir: Path
    capacity: int = 32
    device: Device = "auto"
    threads: int = 0
    dtype: Dtype = "auto"
    quantize: Quantize = "auto"
    step_tokens: int = 512
    block_tokens: int = 16
    kv_bytes: int = 0
    kv_host_bytes: int = 0
    kv_disk_bytes: int = 0
    watchdog_s: float = 60.0
    upstream: str = ""
    upstream_key: str = ""
    fake_tokens_per_s: float = 0.0
