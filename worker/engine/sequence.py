"""One request on the engine's thread."""

from dataclasses import dataclass, field
from typing import Any

from common.jobs import Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """Bookkeeping of a request: its tokens, and how many of them the model has seen.

    0        prompt_len       prefill_len            len(ids)
    | prompt |  earlier attempts  |  new tokens        |
    |<-- seen_len (in the cache) -->|<-- next forward -->|
    """

    id: str
    order: int  # requests are admitted in this order
    ids: list[int]  # the prompt, then every generated token
    prompt_len: int
    max_tokens: int  # over all generated tokens
    eos_ids: frozenset[int]
    sampling: Sampling
    seen_len: int = 0
    cache: Any = None  # the runner's, made by its first forward pass
    prefill_s: float = 0.0  # spent in forward passes over the prefill
    prefill_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.prefill_len = len(self.ids)

    @property
    def is_prefilling(self) -> bool:
        """Tell whether the model has yet to see tokens that it did not just make."""
        return self.seen_len < self.prefill_len

    @property
    def position(self) -> int:
        """The position of the next token among the generated ones."""
        return len(self.ids) - self.prompt_len

    @property
    def is_over(self) -> bool:
        """Tell whether the last token ended the sequence, by itself or by number."""
        return self.position >= self.max_tokens or self.ids[-1] in self.eos_ids
