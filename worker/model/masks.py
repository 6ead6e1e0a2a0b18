"""What a model lets its queries see, asked of the masks that transformers makes for it.

Our attention gets no mask: it is causal, with the sliding window that the model names. A model
whose masks say anything else, such as chunks, would be computed wrongly behind the first chunk.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface

_BEHIND = 8  # positions after the last token, which nobody may see
_MAX_CONTEXT_LEN = 1 << 22  # who promises more is not given that much memory to be asked


class Masks:
    """Makes the masks of an attention function with this name, and remembers what they show.

    They are asked about the last token of a context of ``context_len`` tokens, and need not be
    applied to anything.
    """

    def __init__(self, name: str, context_len: int) -> None:
        self._last = min(context_len, _MAX_CONTEXT_LEN) - 1
        # By the memory of the mask, which attention may get a part of.
        self._made: dict[int, tuple[Tensor, Tensor | None]] = {}
        AttentionMaskInterface.register(name, self._make)

    def allow(self, mask: Tensor | None, window: int | None) -> bool:
        """Tell whether attention without this mask, but with the window, is the same."""
        if mask is None:
            return True
        _, visible = self._made.get(_storage_of(mask), (None, None))
        if visible is None:
            return False
        keys = torch.arange(len(visible))
        first = self._last - window if window is not None else -1
        return torch.equal(visible, (keys > first) & (keys <= self._last))

    def forget(self) -> None:
        """Let go of all masks: transformers keeps a registered function for ever."""
        self._made.clear()

    def _make(
        self, *, q_length: int, kv_length: int, mask_function: Any, device: Any, **_options: Any
    ) -> Tensor:
        """Be transformers' mask function: [1, 1, queries, keys]."""
        mask = torch.zeros((1, 1, q_length, kv_length), device=device)
        self._made[_storage_of(mask)] = mask, self._visible(mask_function)
        return mask

    def _visible(self, mask_function: Any) -> Tensor | None:
        """Return which keys the last token sees; None where more than positions decides."""
        keys = torch.arange(self._last + 1 + _BEHIND)
        zero = torch.zeros_like(keys)
        try:
            visible: Tensor = mask_function(zero, zero, zero + self._last, keys)
        except (RuntimeError, IndexError):  # it looks something up in tensors of the device
            return None
        return visible


def _storage_of(mask: Tensor) -> int:
    return mask.untyped_storage().data_ptr()
