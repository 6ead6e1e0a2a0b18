"""What the sampler knows of one sequence."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from common.jobs import Sampling
from worker.engine.local.sampling.history import History
from worker.engine.local.sampling.randomness import uniform

# Below it the division by the temperature leaves nothing but the greatest logit.
GREEDY_BELOW = 1e-5
# Greater than any model's logits, and far enough from float32's end that sums stay finite.
_GREATEST_BIAS = 1e30


class SamplerState:
    """The settings of a sequence, and what they need to remember of its tokens.

    It is made when the prompt is tokenised, off the engine's thread, since that costs time per
    token of the prompt; then the engine's thread owns it. Token IDs that the model has no logit
    for (``vocab_len`` and above, negative ones) are ignored wherever they come from.
    """

    __slots__ = (
        "_banned_ids",
        "_min_tokens",
        "bias_ids",
        "biases",
        "choice",
        "history",
        "num_logprobs",
        "position",
        "sampling",
        "vocab_len",
    )

    def __init__(  # noqa: PLR0913 - all of it is the sequence's, each from another place
        self,
        sampling: Sampling,
        *,
        prompt_ids: Iterable[int],
        generated_ids: Iterable[int],
        vocab_len: int,
        banned_before_min: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        num_logprobs: int | None = None,
        choice: int = 0,
    ) -> None:
        self.sampling = sampling
        # Number of the answer in a job with several: each has random numbers of its own.
        self.choice = choice
        # Logits per row; the model may have more, for alignment, never fewer.
        self.vocab_len = vocab_len
        # Alternatives to report beside each token; None: no logprobs at all.
        self.num_logprobs = num_logprobs
        # Generated tokens so far, so the position of the one to be chosen.
        self.position = 0
        # The tokens that are penalised; None where nothing is.
        self.history = self._history(prompt_ids)
        # Tokens with a bias, and what to add to their logits.
        self.bias_ids, self.biases = self._bias()
        # No end of the answer before this position: EOS and stop tokens cannot be chosen.
        self._min_tokens = min_tokens
        self._banned_ids = np.array(sorted(filter(self._has_logit, banned_before_min)), np.int64)
        for token_id in generated_ids:
            self.push(token_id)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, without a random number."""
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def is_plain(self) -> bool:
        """Whether nothing is asked but the most likely token by the logits as they come."""
        return self.is_greedy and self.num_logprobs is None and not self.changes_logits

    @property
    def banned_ids(self) -> NDArray[np.int64]:
        """The tokens that must not be chosen at this position."""
        return self._banned_ids if self.position < self._min_tokens else self._banned_ids[:0]

    @property
    def changes_logits(self) -> bool:
        """Whether this position's logits are biased, penalised or banned."""
        return self.history is not None or bool(len(self.bias_ids)) or bool(len(self.banned_ids))

    def push(self, token_id: int) -> None:
        """Go on to the next position: the token is part of the answer. O(1)."""
        self.position += 1
        if self.history is not None and self._has_logit(token_id):
            self.history.add(token_id)

    def uniform(self) -> float:
        """Return this position's random number in [0, 1)."""
        return uniform(self.sampling.seed, self.position, self.choice)

    def _has_logit(self, token_id: int) -> bool:
        return 0 <= token_id < self.vocab_len

    def _history(self, prompt_ids: Iterable[int]) -> History | None:
        if self.sampling.repetition_penalty != 1:
            return History(filter(self._has_logit, prompt_ids))
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            return History()
        return None

    def _bias(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        biases = {i: bias for i, bias in self.sampling.logit_bias.items() if self._has_logit(i)}
        values = np.clip(np.array(list(biases.values())), -_GREATEST_BIAS, _GREATEST_BIAS)
        return np.array(list(biases), np.int64), values.astype(np.float32)
