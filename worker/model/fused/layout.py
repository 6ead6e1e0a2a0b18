"""What Python tells the compiled code: records of sizes and addresses."""

from enum import IntEnum
from typing import Any, Final, Literal

import numpy as np

Quantize = Literal["none", "int8", "int4"]


class Kind(IntEnum):
    """How a matrix is stored."""

    FLOAT = 0
    BYTE = 1
    NIBBLE = 2


def _record(integers: str, floats: str = "") -> "np.dtype[Any]":
    return np.dtype(
        [(name, np.int64) for name in integers.split()]
        + [(name, np.float32) for name in floats.split()],
        align=True,
    )


# A matrix of a linear layer, packed into panels of columns (see ``packing``). ``bias`` is the
# address of one number for each column, or 0.
LINEAR: Final = _record("kind columns depth panels panel_bytes weights scales bias")

# Rows before a linear layer: as floats, or as bytes with a scale for each group of 32. ``offsets``
# and ``minima`` are what the tiles want to know of a group. Strides are in bytes.
ROWS: Final = _record("floats float_stride bytes byte_stride scales offsets minima group_stride")

# The vectors of a layer. The norms of queries and keys are 0 where the model has none; a token
# sees the ``window`` tokens that end with it.
LAYER: Final = _record("input_norm attention_norm query_norm key_norm window")

# One forward pass. Matrices: four for each layer (QKV, output, gate and up, down), then the head.
# ``inputs``: the rows before QKV, gate-up and head; before the output; before down.
PASS: Final = _record(
    # the model
    "layers heads kv_heads head_dim hidden inner matrices vectors embedding norm inverses"
    # the batch
    " tokens wanted sequences table_width block_tokens ids positions blocks offsets starts tables"
    " rows"
    # the cache: bytes of a number; from one block to the next, and so on; from a key to its value
    " pool kv_bytes block_stride layer_stride value_stride token_stride"
    # buffers
    " stream inputs scratch scratch_bytes angles qkv_out qkv_width hidden_out hidden_width"
    " inner_out inner_width logits"
    # functions of OpenMP
    " thread_number num_threads barrier",
    "epsilon softmax_scale rotary_scale",
)
