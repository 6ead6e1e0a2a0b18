"""A choice by a random number: the inverse of the cumulative distribution."""

import torch
from torch import Tensor
from torch.nn.functional import pad

# One block's weights are summed at once, so that no cumulative sum runs over the vocabulary.
_BLOCK_LEN = 64


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Choose an index of each row with the probability of its weight; those of 0 never come.

    ``weights`` [rows, N] need not add up to 1; ``uniform`` [rows, 1] is in [0, 1). A row with a
    weight that is no number yields any index.
    """
    # Cumulative weights at the ends of the blocks, and within the one where the target lies.
    ends = block_sums(weights).cumsum(dim=-1)
    total = ends[:, -1:]
    block = search(ends, total, uniform)
    ids = block * _BLOCK_LEN + torch.arange(_BLOCK_LEN, device=weights.device)
    last = weights.shape[1] - 1
    inside = weights.gather(1, ids.clamp(max=last)).double().masked_fill_(ids > last, 0)
    inside = inside.cumsum(dim=-1)
    begin, end = pad(ends, (1, 0)).gather(1, block), ends.gather(1, block)
    share = (uniform * total - begin) / (end - begin)
    return ids.gather(1, search(inside, inside[:, -1:], share))[:, 0].clamp_(max=last)


def block_sums(weights: Tensor) -> Tensor:
    """Return the float64 sums of each row's blocks; the last one may be of fewer weights.

    In float32 the sum of tens of thousands would be off by more than unlikely tokens have, and in
    float64 all weights would be copied first, at four times the cost. A block's sum is as exact in
    float32 as its weights are.
    """
    num_blocks = weights.shape[1] // _BLOCK_LEN
    whole = num_blocks * _BLOCK_LEN
    blocks = weights[:, :whole].view(len(weights), num_blocks, _BLOCK_LEN)
    sums = blocks.sum(dim=-1).double()
    if whole == weights.shape[1]:
        return sums
    rest = weights[:, whole:].sum(dim=-1, keepdim=True).double()
    return torch.cat([sums, rest], dim=1)


def search(cumulative: Tensor, mass: Tensor, share: Tensor) -> Tensor:
    """Return [rows, 1]: the first index whose cumulative weight is above ``share`` of ``mass``.

    Rounding never carries the choice past ``mass``, where weights of 0 may follow.
    """
    below = mass.nextafter(torch.zeros_like(mass))
    target = torch.minimum(mass * share, below).contiguous()
    index = torch.searchsorted(cumulative, target, right=True)
    return index.clamp_(max=cumulative.shape[1] - 1)
