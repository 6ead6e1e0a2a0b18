"""The settings of the sampled rows of a batch, as columns on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worker.engine.local.sampling.state import SamplerState


@dataclass(frozen=True, slots=True)
class Settings:
    """One float64 column [rows, 1] per setting; see ``common.jobs.Sampling``."""

    temperature: Tensor
    # How many of the most likely tokens may be chosen; infinity: all.
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    # The position's random number in [0, 1).
    uniform: Tensor

    @classmethod
    def of(cls, states: Sequence[SamplerState], device: torch.device) -> "Settings":
        """Return the states' settings; one transfer, for which nobody waits on purpose."""
        rows = [
            (s.temperature, s.top_k or torch.inf, s.top_p, s.min_p, state.uniform())
            for state in states
            for s in (state.sampling,)
        ]
        table = torch.tensor(rows, dtype=torch.float64).T.contiguous().to(device, non_blocking=True)
        return cls(*table.unsqueeze(-1).unbind(0))

    def take(self, rows: Tensor) -> "Settings":
        """Return the settings of some of the rows."""
        return Settings(*(getattr(self, field.name)[rows] for field in fields(self)))
