"""What the fake engine knows: one book, and which passage of it answers a prompt. Pure."""

import hashlib
import random
import re

from common.events import Alternative, TokenLogprob
from common.jobs import JobSpec

EOS_ID = 256

_TALE = (
    "the river turns slowly under a wooden wheel and carries grain \N{EN DASH} café über naïve "
    "\N{WATER WAVE} 水 流れ мельница stone, light."
)


def _make_book() -> bytes:
    words = random.Random(1867).choices(_TALE.split(), k=4096)  # noqa: S311 - it need not be secret
    return (" ".join(words) + " ").encode()


_BOOK = _make_book()
_WORD_STARTS = (0, *(match.end() for match in re.finditer(b" ", _BOOK[:-1])))


class Passage:
    """The tokens of one answer: a function of the prompt and of the answer's number.

    A marker ``[eos=N]`` in the prompt ends the first answer after N tokens, each further one a
    token later, and none before it has ``min_tokens``.
    """

    def __init__(self, spec: JobSpec, prompt: bytes, choice: int = 0) -> None:
        salt = choice.to_bytes(2) if choice else b""
        digest = hashlib.blake2b(prompt, digest_size=8, salt=salt).digest()
        self._start = _WORD_STARTS[int.from_bytes(digest) % len(_WORD_STARTS)]
        marker = re.search(rb"\[eos=(\d{1,9})\]", prompt)
        self._eos_at = max(int(marker[1]) + choice, spec.min_tokens) if marker else None
        self._num_alternatives = spec.logprobs

    def token(self, position: int) -> int:
        """Return the ID of the token at a position."""
        if position == self._eos_at:
            return EOS_ID
        return _BOOK[(self._start + position) % len(_BOOK)]

    def logprobs(self, token_id: int) -> tuple[TokenLogprob, ...]:
        """Return made-up probabilities of a token, where the job wants them."""
        if self._num_alternatives is None:
            return ()
        top = tuple(
            Alternative(other, _text(other), -0.5 * (rank + 1))
            for rank in range(self._num_alternatives)
            for other in [(token_id + rank) % (EOS_ID + 1)]
        )
        return (TokenLogprob(token_id, _text(token_id), -0.5, top),)


def _text(token_id: int) -> str:
    return bytes((token_id,)).decode(errors="replace") if token_id < EOS_ID else ""
