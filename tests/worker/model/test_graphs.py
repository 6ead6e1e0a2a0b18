"""Which steps replay a graph, and what a graph that is larger than its batch computes.

Without a GPU a graph is what ``RecordedGraph`` makes of it: the same call on the same tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.worker.model.fused.models import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    Part,
    make_batch,
    random_ids,
)
from worker.kv.pool import KvPool
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork
from worker.model.graphs import GraphedNetwork

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other

SPARE = NUM_BLOCKS - 1
CAPACITY = 6
MAX_BLOCKS = 4
CPU = torch.device("cpu")


class RecordedGraph:
    """Repeats the forward pass that was made while it was captured."""

    def __init__(self) -> None:
        self.num_replays = 0
        self.shares: int | None = None  # the size of the graph whose memory it uses too
        # Set by ``record``.
        self.batch: Batch
        self.logits: Tensor  # set after the capture: where every replay writes
        self._network: Network

    def record(self, network: Network, batch: Batch) -> Tensor:
        """Run a batch."""
        self._network, self.batch = network, batch
        return network.forward(batch)

    def replay(self) -> None:
        """Run the batch again, with what its tensors hold now."""
        self.num_replays += 1
        self.logits.copy_(self._network.forward(self.batch))

    def pool(self) -> int:
        """Return what stands for the graph's memory: its size."""
        return len(self.batch.ids)


class Cards:
    """Stands in for torch.cuda: the passes of its network are captured by its graphs."""

    def __init__(self, network: Network) -> None:
        self.graphs: list[RecordedGraph] = []
        self._network = network
        self._capturing: RecordedGraph | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Run the batch, and let the graph that is being captured remember it."""
        if self._capturing:
            return self._capturing.record(self._network, batch)
        return self._network.forward(batch)

    @property
    def replayed(self) -> list[int]:
        """The sizes of the graphs that were replayed."""
        return [graph.pool() for graph in self.graphs for _ in range(graph.num_replays)]

    @contextmanager
    def capture(self, graph: RecordedGraph, pool: int | None) -> Iterator[None]:
        """Stand in for ``torch.cuda.graph``."""
        graph.shares = pool
        self.graphs.append(graph)
        self._capturing = graph
        yield
        self._capturing = None


@pytest.fixture
def pool(generic: GenericNetwork) -> KvPool:
    """The blocks of that network."""
    assert generic._pool
    return generic._pool


@pytest.fixture
def cards(generic: GenericNetwork, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """A machine on which graphs can be captured."""
    cards = Cards(generic)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", cards.capture)
    monkeypatch.setattr(GraphedNetwork, "_warm_up", lambda _graphed, batch: generic.forward(batch))
    return cards


@pytest.fixture
def graphed(cards: Cards) -> GraphedNetwork:
    """The network with its graphs captured."""
    graphed = GraphedNetwork(cards, CAPACITY, MAX_BLOCKS, SPARE)
    with torch.inference_mode():
        graphed.capture(CPU, BLOCK_TOKENS)
    for graph, captured in zip(cards.graphs, graphed._graphs.values(), strict=True):
        graph.logits = captured.logits
    return graphed


def _sequences(num: int, generic: GenericNetwork, length: int = 20, first: int = 0) -> list[Part]:
    """Return the last tokens of sequences, of which all others are in blocks from ``first`` on."""
    width = -(-length // BLOCK_TOKENS)
    parts = []
    for number in range(num):
        ids = random_ids(length - number % 3, number + length)
        table = range(first + number * width, first + (number + 1) * width)
        with torch.inference_mode():
            generic.forward(make_batch([Part(ids, 0, len(ids) - 1, table)]))
        parts.append(Part(ids, len(ids) - 1, len(ids), table))
    return parts


def _forward(network: Network, batch: Batch) -> Tensor:
    with torch.inference_mode():
        return network.forward(batch).clone()


def _bits(pool: KvPool) -> Tensor:
    """Return what is in the blocks; NaN is equal to itself here."""
    return pool.blocks.view(torch.int32).flatten(1).clone()


@pytest.mark.usefixtures("graphed")
def test_the_largest_graph_is_captured_first(cards: Cards) -> None:
    """The smaller ones share its memory; the last has room for as many as may run."""
    assert [len(graph.batch.ids) for graph in cards.graphs] == [CAPACITY, 4, 2, 1]
    assert {graph.batch.max_length for graph in cards.graphs} == {MAX_BLOCKS * BLOCK_TOKENS}
    assert [graph.shares for graph in cards.graphs] == [None, CAPACITY, 4, 2]
    assert len({graph.logits.data_ptr() for graph in cards.graphs}) == 1


@pytest.mark.parametrize("num", range(1, CAPACITY + 1))
def test_a_graph_computes_what_the_network_does(
    num: int, graphed: GraphedNetwork, generic: GenericNetwork, cards: Cards
) -> None:
    """The smallest that has room is replayed; as many rows come back as were given."""
    batch = make_batch(_sequences(num, generic))
    found = _forward(graphed, batch)
    assert cards.replayed == [min(size for size in (1, 2, 4, CAPACITY) if size >= num)]
    torch.testing.assert_close(found, _forward(generic, batch), rtol=1e-4, atol=1e-4)


def test_what_is_left_of_a_larger_batch_writes_to_the_spare_block(
    graphed: GraphedNetwork, generic: GenericNetwork, pool: KvPool, cards: Cards
) -> None:
    """The rows behind a batch had sequences before, whose blocks may be others' by now."""
    _forward(graphed, make_batch(_sequences(CAPACITY, generic, length=50)))
    parts = _sequences(CAPACITY - 1, generic, first=30)
    batch = make_batch(parts)
    before = _bits(pool)
    found = _forward(graphed, batch)
    changed = (_bits(pool) != before).any(dim=1).nonzero().flatten().tolist()
    assert set(changed) - {SPARE} == {part.table[-1] for part in parts}
    assert cards.replayed == [CAPACITY, CAPACITY]
    torch.testing.assert_close(found, _forward(generic, batch), rtol=1e-4, atol=1e-4)


def test_the_rows_behind_a_batch_are_as_short_as_can_be(
    graphed: GraphedNetwork, generic: GenericNetwork, cards: Cards
) -> None:
    """They read one token, their own, whatever long sequence had the row before."""
    _forward(graphed, make_batch(_sequences(CAPACITY, generic, length=50)))
    _forward(graphed, make_batch(_sequences(CAPACITY - 1, generic)))
    batch = cards.graphs[0].batch
    found = (batch.blocks, batch.offsets, batch.positions, batch.lengths, batch.tables[:, 0])
    assert [int(values[-1]) for values in found] == [SPARE, 0, 0, 1, SPARE]


@pytest.mark.usefixtures("graphed")
def test_before_any_batch_a_graph_writes_to_the_spare_block(pool: KvPool) -> None:
    """While it is captured there are no sequences."""
    written = (~pool.blocks.isnan()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert written == [SPARE]


@pytest.mark.parametrize("case", ["a prefill", "too many", "too long", "half of the logits"])
def test_what_fits_no_graph_is_passed_on(
    case: str, graphed: GraphedNetwork, generic: GenericNetwork, cards: Cards
) -> None:
    """The network itself runs it."""
    match case:
        case "a prefill":
            batch = make_batch([Part(random_ids(5, 1), 0, 5, [3])])
        case "too many":
            batch = make_batch(_sequences(CAPACITY + 1, generic))
        case "too long":
            batch = make_batch(_sequences(1, generic, length=MAX_BLOCKS * BLOCK_TOKENS + 1))
        case _:
            batch = make_batch(_sequences(2, generic))
            batch = replace(batch, rows=batch.rows[1:])
    found = _forward(graphed, batch)
    assert cards.replayed == []
    torch.testing.assert_close(found, _forward(generic, batch), rtol=1e-4, atol=1e-4)
    assert len(found) == len(batch.rows)


def test_the_longest_sequence_fits(
    graphed: GraphedNetwork, generic: GenericNetwork, cards: Cards
) -> None:
    """A table as wide as the graph's is no reason to pass on."""
    batch = make_batch(_sequences(1, generic, length=MAX_BLOCKS * BLOCK_TOKENS))
    found = _forward(graphed, batch)
    assert cards.replayed == [1]
    torch.testing.assert_close(found, _forward(generic, batch), rtol=1e-4, atol=1e-4)
