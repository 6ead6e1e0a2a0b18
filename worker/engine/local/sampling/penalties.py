"""Changes of single logits: bias, penalties and tokens that are not allowed yet.

Each is one gather and one scatter over all rows that need it, by flat indices into the batch. No
token comes twice in a row's indices, so the order of the writes does not matter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.local.sampling.history import History
from worker.engine.local.sampling.state import SamplerState

_GREATEST = torch.finfo(torch.float32).max


def change_logits(logits: Tensor, states: Sequence[SamplerState]) -> bool:
    """Apply every row's bias, penalties and ban in place; tell whether any row has one.

    ``logits`` is contiguous.
    """
    rows = [row for row, state in enumerate(states) if state.changes_logits]
    if rows:
        assert all(states[row].vocab_len <= logits.shape[1] for row in rows)
        _add_biases(logits, states, rows)
        _penalise(logits, states, rows)
        _ban(logits, states, rows)
    return bool(rows)


def _add_biases(logits: Tensor, states: Sequence[SamplerState], rows: list[int]) -> None:
    rows = [row for row in rows if len(states[row].bias_ids)]
    if rows:
        index = _flat_index(logits, rows, [states[row].bias_ids for row in rows])
        biases = torch.from_numpy(np.concatenate([states[row].biases for row in rows]))
        flat = logits.view(-1)
        flat[index] = flat[index] + biases.to(logits.device, non_blocking=True)


def _penalise(logits: Tensor, states: Sequence[SamplerState], rows: list[int]) -> None:
    # Rows with a history that holds something.
    found = {row: history for row in rows if (history := states[row].history)}
    if not found:
        return
    histories = list(found.values())
    index = _flat_index(logits, list(found), [history.ids for history in histories])
    counts, penalties = _penalties(histories, [states[row] for row in found])
    counts = counts.to(logits.device, non_blocking=True)
    penalties = penalties.to(logits.device, non_blocking=True)
    repetition, presence, frequency = penalties.unbind(1)
    flat = logits.view(-1)
    values = flat[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * counts + presence * (counts > 0)
    # A tiny repetition penalty must not make a logit infinite: the row would look broken.
    flat[index] = values.clamp(max=_GREATEST)


def _penalties(
    histories: Sequence[History], states: Sequence[SamplerState]
) -> tuple[Tensor, Tensor]:
    """Return for every token of the histories its count and its row's three penalties."""
    settings = [
        (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        for s in (state.sampling for state in states)
    ]
    lengths = [len(history) for history in histories]
    penalties = np.repeat(np.array(settings, np.float32), lengths, axis=0)
    counts = np.concatenate([history.counts for history in histories])
    return torch.from_numpy(counts), torch.from_numpy(penalties)


def _ban(logits: Tensor, states: Sequence[SamplerState], rows: list[int]) -> None:
    rows = [row for row in rows if len(states[row].banned_ids)]
    if rows:
        index = _flat_index(logits, rows, [states[row].banned_ids for row in rows])
        logits.view(-1)[index] = -torch.inf


def _flat_index(logits: Tensor, rows: Sequence[int], ids: Sequence[NDArray[np.int64]]) -> Tensor:
    """Return where the rows' tokens are in ``logits.view(-1)``."""
    row_len = logits.shape[1]
    index = np.concatenate([part + row * row_len for row, part in zip(rows, ids, strict=True)])
    return torch.from_numpy(index).to(logits.device, non_blocking=True)
