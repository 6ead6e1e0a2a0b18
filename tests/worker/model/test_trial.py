"""The trial: a network that is right passes, one that is wrong anywhere does not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.worker.model.fused.models import BLOCK_TOKENS
from worker.model.batch import Batch, Network
from worker.model.generic import GenericNetwork
from worker.model.trial import Trial, num_trial_blocks, text_len

torch.set_num_threads(1)  # of small tensors, several threads only wait for each other

LENGTH = text_len(BLOCK_TOKENS, context_len=512)
ENDS = [20, LENGTH - 1, LENGTH]  # of the parts in which the text is computed


class Wrong:
    """A network whose passes are made with other batches, or have other logits."""

    def __init__(
        self,
        network: Network,
        *,
        before: Callable[[Batch], Batch] = lambda batch: batch,
        after: Callable[[Batch, Tensor], Tensor] = lambda _batch, logits: logits,
    ) -> None:
        self._network = network
        self._before = before
        self._after = after

    def forward(self, batch: Batch) -> Tensor:
        """Run the batch, wrongly."""
        return self._after(batch, self._network.forward(self._before(batch)))


@pytest.fixture
def trial(generic: GenericNetwork) -> Trial:
    """The trial of that network."""
    assert generic._pool
    with torch.inference_mode():
        return Trial(generic, generic._pool, context_len=512)


def _passes(trial: Trial, network: Network, *, is_quantized: bool = False) -> bool:
    with torch.inference_mode():
        return trial.passes(network, is_quantized=is_quantized)


def test_a_network_that_is_right_passes(trial: Trial, generic: GenericNetwork) -> None:
    """Also twice, over blocks that it has written already."""
    assert _passes(trial, generic)
    assert _passes(trial, generic)


@pytest.mark.parametrize("place", [0, 19, 20, 33, LENGTH - 2, LENGTH - 1])
def test_one_token_at_a_wrong_position(trial: Trial, generic: GenericNetwork, place: int) -> None:
    """It shows in every logit that sees the token."""

    def moved(batch: Batch) -> Batch:
        return replace(batch, positions=batch.positions + (batch.positions == place) * 3)

    assert not _passes(trial, Wrong(generic, before=moved))


@pytest.mark.parametrize("place", [0, BLOCK_TOKENS, LENGTH - 2])
def test_one_token_in_a_wrong_place(trial: Trial, generic: GenericNetwork, place: int) -> None:
    """What another token needs is overwritten."""

    def misplaced(batch: Batch) -> Batch:
        return replace(batch, offsets=batch.offsets ^ (batch.positions == place).long())

    assert not _passes(trial, Wrong(generic, before=misplaced))


@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("is_decode", [False, True])
def test_only_the_first_of_several_sequences(
    trial: Trial, generic: GenericNetwork, row: int, is_decode: bool
) -> None:
    """A kernel that mixes up the sequences of a batch is right as long as there is one."""

    def mixed_up(batch: Batch, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if len(logits) > 1 and is_decode == (batch.max_query_len == 1):
            logits[row] = logits[0]
        return logits

    assert not _passes(trial, Wrong(generic, after=mixed_up))


def test_blocks_behind_the_text_are_left_alone(trial: Trial, generic: GenericNetwork) -> None:
    """The last one of a pool is where a graph writes what nobody reads."""
    assert generic._pool
    _passes(trial, generic)
    written = (~generic._pool.blocks.isnan()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert written == list(range(num_trial_blocks(BLOCK_TOKENS, context_len=512)))


@pytest.mark.parametrize(
    ("block_tokens", "context_len", "length"), [(16, 512, 43), (1, 512, 43), (256, 8192, 523)]
)
def test_the_text_has_three_blocks(block_tokens: int, context_len: int, length: int) -> None:
    """Or as many as there are tokens in it."""
    assert text_len(block_tokens, context_len) == length


def test_the_text_is_no_longer_than_the_model_takes() -> None:
    """A position that it has not would be the end of a GPU's context, of the other kind."""
    assert text_len(256, 512) == 512


def test_what_is_not_stored_is_missed(trial: Trial, generic: GenericNetwork) -> None:
    """Even when the path before had stored it in the same place."""
    assert _passes(trial, generic)

    def unstored(batch: Batch) -> Batch:
        place = (batch.blocks[:1], batch.offsets[:1])  # all are written there, the last one stays
        is_prompt = len(batch.ids) > 1
        blocks, offsets = (part.expand(len(batch.ids)) for part in place)
        return replace(batch, blocks=blocks, offsets=offsets) if is_prompt else batch

    assert not _passes(trial, Wrong(generic, before=unstored))


def test_a_table_in_the_wrong_order(trial: Trial, generic: GenericNetwork) -> None:
    """The text's blocks are not those that the pool has in this order."""

    def sorted_table(batch: Batch) -> Batch:
        return replace(batch, tables=batch.tables.sort().values)

    assert not _passes(trial, Wrong(generic, before=sorted_table))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e3])
def test_one_wrong_logit(trial: Trial, generic: GenericNetwork, end: int, value: float) -> None:
    """In whatever part, and NaN too, although it compares as nothing; quantised or not."""

    def spoiled(batch: Batch, logits: Tensor) -> Tensor:
        logits = logits.clone()
        if batch.max_length == end:
            logits[0, 3] = value
        return logits

    for is_quantized in (False, True):
        assert not _passes(trial, Wrong(generic, after=spoiled), is_quantized=is_quantized)


@pytest.mark.parametrize(
    ("share", "passes"),
    [(5e-4, (True, True)), (1e-2, (False, True)), (0.7, (False, False))],
    ids=["rounding", "quantised", "something else"],
)
def test_how_much_may_differ(
    trial: Trial, generic: GenericNetwork, share: float, passes: tuple[bool, bool]
) -> None:
    """A float32 model gets little room, quantised weights more, and neither gets any amount."""

    def shifted(_batch: Batch, logits: Tensor) -> Tensor:
        return logits + share * max(1.0, logits.abs().max().item())

    network = Wrong(generic, after=shifted)
    found = [_passes(trial, network, is_quantized=is_quantized) for is_quantized in (False, True)]
    assert tuple(found) == passes
