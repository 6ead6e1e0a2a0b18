"""The greatest logits of every row. Among equal ones the lower token ID comes first, everywhere.

Neither ``topk`` nor a parallel sort promises an order of equal values, and a bfloat16 model makes
many of them. So ranks are taken from 64-bit keys that hold a logit and its token ID:

    bit  63 ............ 32  31 ............. 0
         greater is less     lower token ID is less
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The maximum over 32 neighbours is read at the memory's speed; over 16 it is not (torch 2.13).
_BLOCK_LEN = 32
_ID_MASK = 0xFFFFFFFF
_ALL_BUT_SIGN = 0x7FFFFFFF


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's greatest logit and its token ID; the logit is NaN if the row has a NaN."""
    if logits.is_cuda:
        values, ids = logits.max(dim=-1)
        return values, ids
    found, places = greatest_of(logits.numpy())
    return torch.from_numpy(found), torch.from_numpy(places)


def greatest_of(logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Do the same with arrays.

    NumPy's argmax is vectorised and torch's is not: 6 against 45 µs at 49,152 logits. It also
    gives the interpreter's lock away only once; each of torch's operations does.
    """
    ids = logits.argmax(axis=-1)
    return logits[np.arange(len(logits)), ids], ids


def largest(logits: Tensor, count: int) -> Tensor:
    """Return the IDs of each row's ``count`` greatest logits (at most all), the greatest first.

    Few are found without ranking the vocabulary: they lie in the ``count`` blocks with the
    greatest maxima. (Were one in another block, each of those would have one before it.)
    """
    vocab_len = logits.shape[1]
    if not count:
        return _range(0, logits).expand(len(logits), 0)
    num_blocks = vocab_len // _BLOCK_LEN
    # With more blocks than a quarter of all, picking them costs more than it saves.
    if count * 4 > num_blocks:
        return _first_ids(_keys(logits, _range(vocab_len, logits)), min(count, vocab_len))
    whole = num_blocks * _BLOCK_LEN
    maxima = logits[:, :whole].view(-1, num_blocks, _BLOCK_LEN).amax(dim=-1)
    blocks = _first_ids(_keys(maxima, _range(num_blocks, logits)), count)
    inside = (blocks[:, :, None] * _BLOCK_LEN + _range(_BLOCK_LEN, logits)).flatten(1)
    # What does not fill a block is always looked at.
    rest = _range(vocab_len - whole, logits) + whole
    ids = torch.cat([inside, rest.expand(len(logits), -1)], dim=1)
    return _first_ids(_keys(logits.gather(1, ids), ids), count)


def _range(end: int, like: Tensor) -> Tensor:
    return torch.arange(end, device=like.device)


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """Return int64 keys: the least one has the greatest value, then the lowest ID."""
    bits = (values + 0.0).view(torch.int32)  # the sum makes -0.0 the same as 0.0
    # As integers, floats are in order, but negative ones in reverse.
    ascending = bits ^ ((bits >> 31) & _ALL_BUT_SIGN)
    return (ascending.bitwise_not_().long() << 32).bitwise_or_(ids)


def _first_ids(keys: Tensor, count: int) -> Tensor:
    """Return the IDs of the ``count`` least keys, in order."""
    if count < keys.shape[1]:
        first = keys.topk(count, largest=False).values
    elif keys.is_cuda:
        first = keys.sort(dim=-1).values
    else:
        first = torch.from_numpy(np.sort(keys.numpy(), axis=-1))  # half of torch's time
    return first & _ID_MASK
