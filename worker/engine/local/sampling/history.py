"""Which tokens a sequence holds, in the form that penalties are computed from."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_FIRST_CAPACITY = 64


class History:
    """Every distinct token of a sequence once, with the number of times it was generated.

    Tokens of the prompt that were not generated count 0. The arrays live on the host and grow by
    doubling: what a step needs of all sequences is joined and sent to the device in one piece.
    """

    def __init__(self, prompt_ids: Iterable[int] = ()) -> None:
        distinct = dict.fromkeys(prompt_ids)
        # Token ID → its place in the arrays.
        self._place_of = {token_id: place for place, token_id in enumerate(distinct)}
        capacity = max(_FIRST_CAPACITY, 2 * len(distinct))
        self._ids = np.zeros(capacity, np.int64)
        self._counts = np.zeros(capacity, np.int64)
        self._ids[: len(distinct)] = list(distinct)

    def __len__(self) -> int:
        return len(self._place_of)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens, in the order of their first coming; valid until the next ``add``."""
        return self._ids[: len(self)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of ``ids`` was generated; valid until the next ``add``."""
        return self._counts[: len(self)]

    def add(self, token_id: int) -> None:
        """Count a generated token."""
        place = self._place_of.get(token_id)
        if place is None:
            place = len(self)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._place_of[token_id] = place
            self._ids[place] = token_id
        self._counts[place] += 1
