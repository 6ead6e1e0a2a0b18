"""One answer in the making, on the engine's thread."""

from dataclasses import dataclass, field

from worker.engine.local.sampling.state import SamplerState
from worker.kv.table import Table


@dataclass(slots=True, eq=False)
class Sequence:
    """Bookkeeping of an answer: its tokens, and how many of them the model has seen.

    0        prompt_len       prefill_len            len(ids)
    | prompt |  earlier attempts  |  new tokens        |
    |<- table.num_tokens (in the cache) ->|<- to do -->|
    """

    id: str
    order: int  # the older goes first
    rank: int  # of its priority, 0 is the highest
    ids: list[int]  # the prompt, then every generated token
    prompt_len: int
    max_tokens: int  # over all generated tokens
    end_ids: frozenset[int]  # they end the answer, but not before it has ``min_tokens``
    min_tokens: int
    sampler: SamplerState
    table: Table
    is_kept: bool = False  # under a prompt ID: its blocks go to the disk at its end
    leader: "Sequence | None" = None  # another answer to the same prompt, which prefills it
    has_followers: bool = False
    wants_prompt_logprobs: bool = False
    scored_len: int = 0  # tokens of the prompt whose successors' logprobs were made
    cached_len: int | None = None  # tokens found in the cache at the first admission
    prefill_s: float = 0.0  # spent in forward passes that had a part of its prefill
    has_prefilled: bool = False
    is_gone: bool = False  # ended, failed or cancelled
    skipped: int = 0  # younger ones that were admitted before it
    prefill_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.prefill_len = len(self.ids)

    @property
    def num_due(self) -> int:
        """Tokens that the model has yet to see; one when it decodes."""
        return len(self.ids) - self.table.num_tokens

    @property
    def max_slice_len(self) -> int:
        """Most tokens in one step: a row of logits is a hundred times as large as its token."""
        return 128 if self.wants_prompt_logprobs else 1 << 30

    @property
    def num_generated(self) -> int:
        """Tokens of the answer, those of earlier attempts included."""
        return len(self.ids) - self.prompt_len

    @property
    def is_over(self) -> bool:
        """Tell whether the last token ended the answer, by itself or by number."""
        if self.num_generated >= self.max_tokens:
            return True
        return self.ids[-1] in self.end_ids and self.num_generated > self.min_tokens

    @property
    def is_ready(self) -> bool:
        """Tell whether it may be admitted: what its leader prefills need not be done twice."""
        return self.leader is None or self.leader.has_prefilled or self.leader.is_gone
