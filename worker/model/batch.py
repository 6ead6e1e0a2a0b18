"""What one step gives the model: the new tokens of all sequences, in one ragged row."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one forward pass: T tokens of B sequences, one sequence after the other.

    Tensors are on the model's device. A sequence that decodes has one token here, one that
    prefills a chunk has many; both attend to everything before them through their block table.
    """

    ids: Tensor  # [T] int64: token IDs
    positions: Tensor  # [T] int64: the token's place in its sequence
    blocks: Tensor  # [T] int64: the block in which the token's keys and values are put …
    offsets: Tensor  # [T] int64: … and their place in the block
    starts: Tensor  # [B + 1] int32: sequence b owns the tokens starts[b] … starts[b + 1] - 1
    lengths: Tensor  # [B] int32: the sequence's length, its tokens in this batch included
    tables: Tensor  # [B, N] int32: the numbers of the sequence's blocks; 0 behind its last one
    rows: Tensor  # [R] int64: the tokens whose logits are wanted
    max_query_len: int  # the most tokens that a sequence has in this batch
    max_length: int  # the greatest of ``lengths``


class Network(Protocol):
    """A causal language model over a paged KV cache. One thread calls it."""

    def forward(self, batch: Batch) -> Tensor:
        """Put the tokens' keys and values into the cache; return logits [R, vocabulary], float32.

        Attention is causal: a token at position p sees the positions 0 … p of its own sequence.
        """
        ...
