"""What the model itself thought of its tokens, before any setting had its say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.local.sampling.ranking import largest
from worker.engine.local.sampling.state import SamplerState


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """The chosen token's log-probability and the most likely tokens', without their texts.

    There are fewer of the latter than were asked for where the model rules out all others.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True)
class LogprobTable:
    """The log-probabilities of the rows that asked for them, kept until the choice is made."""

    # Numbers of the rows within the batch.
    rows: list[int]
    # How many alternatives each of them asked for.
    nums_top: list[int]
    # [rows, vocabulary] on the device.
    logprobs: Tensor
    # [rows, greatest of ``nums_top``] on the device, most likely first.
    top_ids: Tensor

    def report(self, token_ids: Sequence[int]) -> list[RawLogprobs | None]:
        """Return what the batch's rows asked for; ``token_ids`` are all rows' choices.

        Rows without a choice (-1) get nothing.
        """
        reports: list[RawLogprobs | None] = [None] * len(token_ids)
        chosen = torch.tensor([[max(token_ids[row], 0)] for row in self.rows])
        ids = torch.cat([chosen.to(self.top_ids.device), self.top_ids], dim=1)
        table = torch.stack([ids.double(), self.logprobs.gather(1, ids).double()], dim=1)
        for row, num_top, (top_ids, logprobs) in zip(
            self.rows, self.nums_top, table.tolist(), strict=True
        ):
            if token_ids[row] >= 0:
                reports[row] = _report(top_ids[1 : num_top + 1], logprobs[: num_top + 1])
        return reports


def tabulate(logits: Tensor, states: Sequence[SamplerState]) -> LogprobTable | None:
    """Note the log-probabilities that the states ask for; ``logits`` is not modified."""
    asked = {
        row: num for row, state in enumerate(states) if (num := state.num_logprobs) is not None
    }
    if not asked:
        return None
    rows, nums_top = list(asked), list(asked.values())
    if len(rows) < len(logits):
        logits = logits[torch.tensor(rows).to(logits.device, non_blocking=True)]
    # Ranked by the logits: taking away the same number may make two that differ equal.
    num_ranked = max(nums_top)
    top_ids = largest(logits, num_ranked)
    return LogprobTable(rows, nums_top, logits.log_softmax(dim=-1), top_ids)


def score(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[RawLogprobs | None]:
    """Return what the model thought of tokens that are given: row i's is ``token_ids[i]``."""
    rows = list(range(len(token_ids)))
    table = LogprobTable(
        rows, [num_top] * len(rows), logits.log_softmax(dim=-1), largest(logits, num_top)
    )
    return table.report(token_ids)


def _report(top_ids: list[float], logprobs: list[float]) -> RawLogprobs:
    chosen, *top = logprobs
    num_possible = sum(logprob > -torch.inf for logprob in top)
    return RawLogprobs(chosen, [int(i) for i in top_ids[:num_possible]], top[:num_possible])
