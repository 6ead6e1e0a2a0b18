"""The next token of every sequence of a batch."""

import enum
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.jobs import Sampling
from worker.engine.local.sampling.drawing import draw
from worker.engine.local.sampling.logprobs import RawLogprobs, tabulate
from worker.engine.local.sampling.penalties import change_logits
from worker.engine.local.sampling.ranking import greatest, greatest_of
from worker.engine.local.sampling.settings import Settings
from worker.engine.local.sampling.state import SamplerState
from worker.engine.local.sampling.truncation import draw_nucleus, draw_ranked, weigh

# Up to here the most likely tokens are picked out; for a greater top-k all are sorted.
_NARROW_K = 1024


class _Kind(enum.Enum):
    """How a row's token is drawn: groups of rows that share the same tensor operations."""

    # Among all tokens, in the order of their IDs; min-p needs no ranking.
    WHOLE = enum.auto()
    # Among the fewest that have top-p.
    NUCLEUS = enum.auto()
    # Among the top-k, which are few ...
    NARROW = enum.auto()
    # ... or many.
    WIDE = enum.auto()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The choices of a batch, by row."""

    # -1 where nothing can be chosen.
    ids: list[int]
    # False where the model's logits are broken (a NaN, +inf, or all -inf), or all are banned.
    is_finite: list[bool]
    # None where the state asks for none, or nothing was chosen.
    logprobs: list[RawLogprobs | None]


class Sampler:
    """Chooses tokens by each sequence's own settings, all rows of one kind at a time.

    A row's choice is a function of its logits and its state, whatever else is in the batch.
    Log-probabilities are taken from the logits as they come. Then, in this order: bias, penalties,
    ban before ``min_tokens``, temperature, top-k, top-p, min-p, choice.
    """

    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> Sampled:
        """Choose one token per row; the states are not advanced.

        ``logits`` [rows, vocabulary] is float32 on any device, and may be modified.
        """
        assert len(logits) == len(states)
        if not states:
            return Sampled([], [], [])
        with torch.inference_mode():
            if not logits.is_cuda and all(state.is_plain for state in states):
                return _most_likely(logits)
            logits = logits.detach().contiguous()
            table = tabulate(logits, states)
            ids = _choose(logits, states).tolist()
            is_finite = [token_id >= 0 for token_id in ids]
            return Sampled(ids, is_finite, table.report(ids) if table else [None for _ in ids])


def _most_likely(logits: Tensor) -> Sampled:
    """Do what ``sample`` does where all states are plain.

    Without torch: while its operations give the interpreter's lock away and ask for it again, the
    event loop is at work, and each would wait for it.
    """
    values, ids = greatest_of(logits.numpy())
    is_finite = np.isfinite(values)
    chosen = np.where(is_finite, ids, -1)
    return Sampled(chosen.tolist(), is_finite.tolist(), [None] * len(chosen))


def _choose(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Return the chosen token IDs, -1 where there is none."""
    # The greatest logit tells whether a row is in order: NaN counts as greater than all.
    top, ids = greatest(logits)
    if change_logits(logits, states):
        top_now, ids = greatest(logits)
        # A ban may have covered a NaN; the row stays broken.
        top = torch.where(top.isfinite(), top_now, torch.nan)
    for kind, group in _group(states, logits.shape[1]).items():
        if len(group) == len(states):
            ids = _draw(kind, logits, top[:, None], states)
        else:
            rows = torch.tensor(group).to(logits.device, non_blocking=True)
            ids[rows] = _draw(kind, logits[rows], top[rows, None], [states[row] for row in group])
    return ids.masked_fill_(~top.isfinite(), -1)


def _group(states: Sequence[SamplerState], vocab_len: int) -> dict[_Kind, list[int]]:
    """Return which rows are drawn in which way; greedy ones are in none."""
    groups: defaultdict[_Kind, list[int]] = defaultdict(list)
    for row, state in enumerate(states):
        if not state.is_greedy:
            groups[_kind(state.sampling, vocab_len)].append(row)
    return groups


def _kind(sampling: Sampling, vocab_len: int) -> _Kind:
    if 0 < sampling.top_k < vocab_len:
        return _Kind.NARROW if sampling.top_k <= _NARROW_K else _Kind.WIDE
    return _Kind.NUCLEUS if sampling.top_p < 1 else _Kind.WHOLE


def _draw(kind: _Kind, logits: Tensor, top: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Return a token ID per row; rows that are no numbers get any. ``logits`` is modified."""
    settings = Settings.of(states, logits.device)
    match kind:
        case _Kind.WHOLE:
            weights = weigh(logits, top, settings.temperature)
            if any(state.sampling.min_p for state in states):
                weights.masked_fill_(weights < settings.min_p.to(weights.dtype), 0)
            return draw(weights, settings.uniform)
        case _Kind.NUCLEUS:
            return draw_nucleus(logits, top, settings)
        case _Kind.NARROW:
            num_ranked = max(state.sampling.top_k for state in states)
            return draw_ranked(logits, top, settings, num_ranked)
        case _Kind.WIDE:
            return draw_ranked(logits, top, settings, logits.shape[1])
