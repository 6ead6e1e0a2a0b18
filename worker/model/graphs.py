"""Decode steps as CUDA graphs: the GPU does not wait for Python between its kernels.

A graph replays the same kernels on the same memory, so each has buffers of its own, for a fixed
number of sequences. A smaller batch is filled up with rows that write to a block nobody reads.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.model.batch import Batch, Network

# Numbers of sequences for which a graph is captured; a batch takes the next greater one.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, *range(256, 4097, 64))


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured step: its inputs, and where its logits appear."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    logits: Tensor  # the first rows of all graphs' common buffer


class GraphedNetwork:
    """A ``Network`` that replays graphs for steps in which everybody decodes, and else passes on.

    ``spare_block`` belongs to no sequence. ``capture`` has to be called first.
    """

    def __init__(self, network: Network, capacity: int, max_blocks: int, spare_block: int) -> None:
        self._network = network
        self._sizes = [size for size in SIZES if size < capacity] + [capacity]
        self._max_blocks = max_blocks
        self._spare_block = spare_block
        self._graphs: dict[int, _Graph] = {}

    def capture(self, device: torch.device, block_tokens: int) -> None:
        """Capture all graphs, the largest first, so that the smaller ones share its memory."""
        pool, common = None, torch.empty(0)
        for size in reversed(self._sizes):
            batch = self._idle(size, device, self._max_blocks * block_tokens)
            graph = torch.cuda.CUDAGraph()
            logits = self._warm_up(batch)
            common = common if len(common) else torch.empty_like(logits)
            with torch.cuda.graph(graph, pool=pool):
                common[:size].copy_(self._network.forward(batch))
            pool = graph.pool()
            self._graphs[size] = _Graph(graph, batch, common[:size])

    def forward(self, batch: Batch) -> Tensor:
        """Replay a graph where one fits; see ``Network``."""
        num = len(batch.ids)
        size = next((size for size in self._sizes if size >= num), None)
        is_decode = batch.max_query_len == 1 and len(batch.rows) == num
        if size is None or not is_decode or batch.tables.shape[1] > self._max_blocks:
            return self._network.forward(batch)
        captured = self._graphs[size]
        self._fill(captured.batch, batch, num)
        captured.graph.replay()
        return captured.logits[:num]

    def _warm_up(self, batch: Batch) -> Tensor:
        # Libraries allocate workspaces and choose kernels at their first calls.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                logits = self._network.forward(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return logits

    def _fill(self, target: Batch, source: Batch, num: int) -> None:
        """Copy the inputs; what is behind them goes on writing to the spare block."""
        for name in ("ids", "positions", "blocks", "offsets", "lengths"):
            getattr(target, name)[:num].copy_(getattr(source, name))
        target.blocks[num:] = self._spare_block
        target.offsets[num:] = 0
        target.positions[num:] = 0
        target.lengths[num:] = 1
        width = source.tables.shape[1]
        target.tables[:num, :width].copy_(source.tables)
        target.tables[num:, 0] = self._spare_block

    def _idle(self, size: int, device: torch.device, max_length: int) -> Batch:
        def zeros(dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        batch = Batch(
            ids=zeros(),
            positions=zeros(),
            blocks=zeros() + self._spare_block,
            offsets=zeros(),
            starts=torch.arange(size + 1, dtype=torch.int32, device=device),
            lengths=zeros(torch.int32) + 1,
            tables=torch.zeros((size, self._max_blocks), dtype=torch.int32, device=device),
            rows=torch.arange(size, device=device),
            max_query_len=1,
            max_length=1,
        )
        # The kernel's split of the work is captured too: for the longest that may come.
        return replace(batch, max_length=max_length)
