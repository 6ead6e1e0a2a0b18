"""What a step of the engine makes of its sequences."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.engine.protocol import Prefilled, Refused

if TYPE_CHECKING:
    from worker.engine.local.sampling import RawLogprobs  # imports torch


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer or a prompt; ``logprobs`` where they were asked for."""

    id: int
    logprobs: "RawLogprobs | None" = None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log probabilities of some of the prompt's tokens, the next ones in order."""

    tokens: tuple[Token, ...]


Outcome = Prefilled | Refused | Token | PromptLogprobs
"""What a step made of a sequence."""

Made = tuple[str, Outcome]
"""A sequence's ID and its outcome."""
