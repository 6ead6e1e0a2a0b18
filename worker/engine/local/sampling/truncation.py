"""The choice among the most likely tokens only: top-k, top-p and min-p, in this order.

Tokens are ranked, most likely first, and the random number runs through them in that order.
"""

import torch
from torch import Tensor

from worker.engine.local.sampling.drawing import block_sums, search
from worker.engine.local.sampling.ranking import largest
from worker.engine.local.sampling.settings import Settings

# How many tokens are ranked at first for a nucleus of unknown size, then for those that need more.
# At usual temperatures a language model's has fewer than a hundred.
_NUCLEUS_STEPS = (128, 2048)


def weigh(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """Return probabilities up to a factor, in place of the logits; the likeliest token's is 1.

    ``top`` [rows, 1] is each row's greatest logit: taken away before the division, so that no
    temperature makes anything overflow.
    """
    return logits.sub_(top).div_(temperature.to(logits.dtype)).exp_()


def draw_ranked(logits: Tensor, top: Tensor, settings: Settings, num_ranked: int) -> Tensor:
    """Choose a token ID of each row; ``num_ranked`` is the greatest ``top_k`` among them."""
    ids = largest(logits, num_ranked)
    weights = weigh(logits.gather(1, ids).double(), top, settings.temperature)
    ranks = torch.arange(weights.shape[1], device=weights.device)
    weights.masked_fill_(ranks >= settings.top_k, 0)
    cumulative = weights.cumsum(dim=-1)
    return _draw_kept(ids, weights, cumulative, cumulative[:, -1:], settings)


def draw_nucleus(logits: Tensor, top: Tensor, settings: Settings) -> Tensor:
    """Choose a token ID of each row by ``top_p`` and ``min_p``; ``logits`` is modified.

    Rows whose nucleus is larger than what was ranked are done again with more of it. Whether one
    is depends on that row alone.
    """
    weights = weigh(logits, top, settings.temperature)
    total = block_sums(weights).sum(dim=-1, keepdim=True)
    rows = torch.arange(len(logits), device=logits.device)
    chosen = torch.empty_like(rows)
    for num_ranked in (*_NUCLEUS_STEPS, logits.shape[1]):
        ids = largest(weights, num_ranked)
        ranked = weights.gather(1, ids).double()
        cumulative = ranked.cumsum(dim=-1)
        chosen[rows] = _draw_kept(ids, ranked, cumulative, total, settings)
        # A row that is no numbers is not done again either.
        is_larger = (cumulative[:, -1:] < settings.top_p * total)[:, 0]
        again = is_larger.nonzero()[:, 0]
        if not len(again):
            break
        weights, total, rows = weights[again], total[again], rows[again]
        settings = settings.take(again)
    return chosen


def num_kept(weights: Tensor, cumulative: Tensor, total: Tensor, settings: Settings) -> Tensor:
    """Return [rows, 1]: how many of the ranked tokens may be chosen, at least one.

    By ``top_p`` the fewest that have that part of ``total``; by ``min_p`` those that are at least
    that many times as likely as the first, whose weight is 1.
    """
    nucleus = torch.searchsorted(cumulative, settings.top_p * total) + 1
    nucleus.masked_fill_(settings.top_p >= 1, weights.shape[1])
    likely = ((weights >= settings.min_p) & (weights > 0)).sum(dim=-1, keepdim=True)
    return torch.minimum(nucleus, likely).clamp_(min=1, max=weights.shape[1])


def _draw_kept(
    ids: Tensor, weights: Tensor, cumulative: Tensor, total: Tensor, settings: Settings
) -> Tensor:
    kept = num_kept(weights, cumulative, total, settings)
    mass = cumulative.gather(1, kept - 1)
    return ids.gather(1, search(cumulative, mass, settings.uniform))[:, 0]
