"""The Llama family on the CPU, from token IDs to logits in one call of compiled code."""

import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.kv.pool import KvPool
from worker.model.batch import Batch
from worker.model.fused.attention import QUERIES
from worker.model.fused.buffers import Rows, address, aligned
from worker.model.fused.crew import Crew
from worker.model.fused.jit import PANEL, compile_entry
from worker.model.fused.layout import PASS, Quantize
from worker.model.fused.softmax import SPAN
from worker.model.fused.step import work
from worker.model.fused.team import find_team
from worker.model.fused.weights import take_weights
from worker.model.loading import LoadedModel

Array = NDArray[Any]

# Weights that are rounded to bytes are not worth a cache of four bytes a number, which is what
# decoding many sequences spends half of its time on.
KV_DTYPES: Final[dict[Quantize, torch.dtype]] = {
    "none": torch.float32,
    "int8": torch.float16,
    "int4": torch.float16,
}

_MIN_ROWS: Final = 64


@cache
def _compile(cache_dir: Path | None) -> int:
    return compile_entry(work, cache_dir)


class FusedLlama:
    """A ``Network``. It keeps nothing of the model but, without quantisation, its embedding."""

    def __init__(
        self,
        model: LoadedModel,
        pool: KvPool,
        quantize: Quantize,
        cache_dir: Path | None = None,
    ) -> None:
        team = find_team()
        assert team is not None
        assert pool.blocks.dtype in KV_DTYPES.values()
        config = model.network.config
        self._team = team
        self._work = _compile(cache_dir)
        self._pool = pool
        self._weights = take_weights(model.network, quantize)
        self._vocabulary = int(self._weights.matrices[-1]["columns"])
        attention = model.network.model.layers[0].self_attn
        self._pass = np.zeros(1, PASS)
        self._buffers: dict[str, Any] = {}
        self._capacity = 0
        self._threads = 0
        self._crew = Crew(1)
        self._set(
            layers=len(self._weights.vectors),
            heads=config.num_attention_heads,
            kv_heads=pool.shape.num_heads,
            head_dim=pool.shape.head_dim,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            matrices=address(self._weights.matrices),
            vectors=address(self._weights.vectors),
            embedding=address(self._weights.embedding),
            norm=address(self._weights.norm),
            inverses=address(self._weights.inverses),
            epsilon=config.rms_norm_eps,
            softmax_scale=attention.scaling,
            rotary_scale=self._weights.rotary_scale,
            thread_number=team.address("omp_get_thread_num"),
            num_threads=team.address("omp_get_num_threads"),
            barrier=team.address("GOMP_barrier"),
        )
        self._set_pool(pool)

    def forward(self, batch: Batch) -> Tensor:
        """See ``Network``."""
        tokens, wanted = len(batch.ids), len(batch.rows)
        threads = self._find_crew().choose()
        self._reserve(tokens, threads)
        panels = int(self._weights.matrices[-1]["panels"])
        # Arrays: making them does not give the interpreter's lock away, for the event loop is at
        # work. Contiguous copies, where they are ones, live until the call is over.
        logits = np.empty((wanted, panels * PANEL), np.float32)
        arrays = {
            name: np.ascontiguousarray(getattr(batch, name).numpy())
            for name in ("ids", "positions", "blocks", "offsets", "starts", "tables", "rows")
        }
        self._set(
            tokens=tokens,
            wanted=wanted,
            sequences=len(batch.lengths),
            table_width=batch.tables.shape[1],
            logits=address(logits),
            **{name: address(array) for name, array in arrays.items()},
        )
        began = time.perf_counter()
        self._team.run(self._work, address(self._pass), threads)
        self._crew.learn(tokens, time.perf_counter() - began)
        return torch.from_numpy(logits[:, : self._vocabulary])

    def _find_crew(self) -> Crew:
        """Return the crew of the calling thread: torch's number of threads is set per thread."""
        most = torch.get_num_threads()
        if most != self._crew.most:
            self._crew = Crew(most)
        return self._crew

    def _set(self, **fields: float) -> None:
        record = self._pass[0]
        for name, value in fields.items():
            record[name] = value

    def _set_pool(self, pool: KvPool) -> None:
        block, layer, value, token, _head, _dim = pool.blocks.stride()
        size = pool.blocks.itemsize
        self._set(
            block_tokens=pool.shape.block_tokens,
            pool=pool.blocks.data_ptr(),
            kv_bytes=size,
            block_stride=block * size,
            layer_stride=layer * size,
            value_stride=value * size,
            token_stride=token * size,
        )

    def _reserve(self, tokens: int, threads: int) -> None:
        """Make buffers for so many tokens, twice as many as last time or more."""
        if tokens <= self._capacity and threads <= self._threads:
            return
        self._capacity = max(tokens, 2 * self._capacity, _MIN_ROWS)
        self._threads = max(threads, self._threads)
        record = self._pass[0]
        qkv, output, gate_up, down = self._weights.matrices[:4]
        inputs = [Rows.make(self._capacity, int(matrix["depth"])) for matrix in (qkv, output, down)]
        records = np.concatenate([rows.record() for rows in inputs])
        buffers: dict[str, Array] = {
            "inputs": records,
            "stream": aligned((self._capacity, int(record["hidden"])), np.float32),
            "angles": aligned((self._capacity, int(record["head_dim"])), np.float32),
            "scratch": aligned((self._threads, self._scratch_len()), np.float32),
        }
        for name, matrix in (("qkv", qkv), ("hidden", output), ("inner", gate_up)):
            width = int(matrix["panels"]) * PANEL
            buffers[f"{name}_out"] = aligned((self._capacity, width), np.float32)
            self._set(**{f"{name}_width": width})
        self._set(scratch_bytes=buffers["scratch"].strides[0])
        self._set(**{name: address(array) for name, array in buffers.items()})
        self._buffers = {**buffers, "rows": inputs}

    def _scratch_len(self) -> int:
        """Numbers that a thread needs for attention; see ``attention``."""
        record = self._pass[0]
        dim = int(record["head_dim"])
        heads = int(record["heads"])
        rows = max(QUERIES * heads // int(record["kv_heads"]), heads)
        wide = -(-dim // PANEL) * PANEL
        length = rows * (dim + SPAN + wide + 2) + SPAN * (dim + wide)
        return -(-length // 1024) * 1024 + 16
